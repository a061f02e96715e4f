// influence: one block of classes of an online softmax, in place over the block's logits.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "math/matrix.h"

namespace graceful_fast {

// Of the classes but the target's, so far. The target's own logit would take a confident row's digits.
struct InfluenceRow {
  double top;     // maximum of the logits; the type's lowest finite number before the first
  double others;  // sum of exp(logit - top)
};

struct InfluenceParams {
  void* logits;  // [rows, classes] in: products; out: factor * exp(factor * product + bias - top), the target's class 0
  int64_t classes;
  Element type;           // of logits, factor, bias and shrink: float32 or float64
  const void* factor;     // [classes] of each class, or null: 1
  const void* bias;       // [classes] or null: 0
  const int64_t* target;  // [rows] the target's class; outside first_class .. + classes - 1: not in this block
  int64_t first_class;    // of the block
  InfluenceRow* rows;     // [rows] in and out
  void* shrink;           // [rows] out: exp(top before - top after), for what was summed before
};

struct InfluenceKernels {
  void (*run)(const InfluenceParams&, int64_t begin, int64_t end);  // rows begin..end-1
};

GF_DECLARE_TABLE(InfluenceKernels, influence)

}  // namespace graceful_fast
