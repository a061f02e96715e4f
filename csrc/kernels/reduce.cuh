// Reductions over a warp and over a block, in an order that depends on neither schedule nor device: the same bits
// always.
#pragma once
#include "kernels/simt.cuh"

namespace graceful_fast {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// A NaN loses: maxima and minima are over the numbers.
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};
struct Smaller {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Every lane gets the result.
template <class Operation, class T>
__device__ T warp_reduce(T value, Operation operation = {}) {
  for (int step = kWarp / 2; step > 0; step /= 2) value = operation(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Every thread of the block gets the result; `shared` has room for a value of each warp. All threads take part.
template <class Operation, class T>
__device__ T block_reduce(T value, T* shared, Operation operation = {}) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_reduce(value, operation);
  __syncthreads();  // what was in `shared` has been read
  if (threadIdx.x % kWarp == 0) shared[warp] = value;
  __syncthreads();  // all warps' values are there
  T result = shared[0];
  for (int w = 1; w < warps; ++w) result = operation(result, shared[w]);
  return result;
}

}  // namespace graceful_fast
