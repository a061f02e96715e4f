// flips: which samples the old and the new model get right, in one pass over both score matrices.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "math/matrix.h"

namespace graceful_fast {

struct FlipsParams {
  Matrix old_scores, new_scores;  // (N, classes) each; the numbers of classes may differ
  const int64_t* target;          // [N] 0 <= y < classes of one model or both, checked by the binding
  uint8_t* outcome;  // [N] out: bit 0 old right, bit 1 new right; bit 2 (4) a NaN in old, bit 3 (8) a NaN in new
  int64_t topk;      // right: fewer than topk scores are better (greater, or equal at a smaller class)
};

struct FlipsKernels {
  void (*run)(const FlipsParams&, int64_t begin, int64_t end);  // rows begin..end-1
};

GF_DECLARE_TABLE(FlipsKernels, flips)

}  // namespace graceful_fast
