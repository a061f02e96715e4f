// scan, a row of any type and the sum over it in the fixed order of math/settle.h: eight threads, each a lane.
#pragma once
#include "kernels/scan.h"
#include "kernels/simt.cuh"

namespace graceful_fast {
namespace {

constexpr int kRowThreads = 256;
constexpr int kLanes = 8;

inline unsigned blocks(int64_t count, int64_t a_block) { return unsigned((count + a_block - 1) / a_block); }

// use(a pointer to the row's first element, of its type)
template <class Use>
__device__ __forceinline__ void with_row(const Matrix& m, int64_t row, Use use) {
  switch (m.type) {
    case Element::float64:
      return use(static_cast<const double*>(m.data) + row * m.row_stride);
    case Element::float16:
      return use(static_cast<const Half*>(m.data) + row * m.row_stride);
    case Element::bfloat16:
      return use(static_cast<const BFloat16*>(m.data) + row * m.row_stride);
    default:
      return use(static_cast<const float*>(m.data) + row * m.row_stride);
  }
}

// The lanes' sums of the eight threads of a row, in the fixed order; every one of them has it.
__device__ __forceinline__ double fixed_total(double lane) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) lane = __dadd_rn(lane, __shfl_xor_sync(0xffffffffu, lane, step));
  return lane;
}

}  // namespace
}  // namespace graceful_fast
