// influence: what stands between the binding and the kernel.
#pragma once
#include <cstdint>

#include "math/matrix.h"

namespace graceful_fast {

struct InfluenceParams {
  void* logits;  // [rows, classes] in: products; out: factor * exp(factor * product + bias - top), the target's class 0
  int64_t rows, classes;
  Element type;           // of logits, factor, bias and shrink: float32 or float64
  const void* factor;     // [classes] of each class, or null: 1
  const void* bias;       // [classes] or null: 0
  const int64_t* target;  // [rows] the target's class; outside first_class .. + classes - 1: not in this block
  int64_t first_class;    // of the block
  double* statistics;  // [rows, 2] in and out, of the classes but the target's so far: the maximum of the logits, and
                       // the sum of exp(logit - maximum)
  void* shrink;        // [rows] out: exp(maximum before - maximum after), for what was summed before
};

void launch_influence(const InfluenceParams& params, void* stream);

}  // namespace graceful_fast
