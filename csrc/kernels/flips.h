// flips: what stands between the binding and the kernel.
#pragma once
#include <cstdint>

#include "math/matrix.h"

namespace graceful_fast {

struct FlipsParams {
  Matrix scores;          // (N, classes) of one model, at least one class
  const int64_t* target;  // [N]
  int64_t classes;        // of the model that knows more
  int64_t topk;
  int bit;                     // 0 old, 1 new
  uint8_t* outcome;            // [N] out; in and out for the new model
  unsigned long long* status;  // [1] in and out: the first row whose target is no class, all bits set if there is none
};

void launch_flips(const FlipsParams& params, void* stream);

}  // namespace graceful_fast
