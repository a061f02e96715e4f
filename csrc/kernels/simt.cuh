// The one header that a kernel includes besides kernels/*.cuh and math/*.h: plain CUDA names, and the few primitives of
// namespace simt, for nvcc and NVRTC (gpu.cuh) and for g++, which runs the same source on the CPU (simt/host.h).
//
// Both halves have: threadIdx and its kin; __syncthreads and its _or, _and, _count; __syncwarp; the __shfl_*_sync, votes
// and __reduce_*_sync; atomics; __ldg; the rounding intrinsics (__fmul_rn, ...), bit casts, __popc and its kin; vector
// types; and in namespace simt:
//   Smem smem; T* a = smem.take<T>(count, align = 16);    dynamic shared memory, the only kind there is
//   SmemBytes().take<T>(count, align).bytes               what the launcher asks for
//   cp_async_16(shared, global[, bytes]), cp_async_commit(), cp_async_wait<N>()
//   ldmatrix_x4(r, shared), _x2, _x4_trans, _x2_trans
//   mma_16816_bf16, mma_16816_f16, mma_1688_tf32, mma_16832_s8 (d, a, b)       d += a * b
//   load_16B(p), store_16B(p, v), store_16B_streaming(p, v)                    aligned, as uint4
//   launch("name", kernel, grid, block, shared_bytes, stream, params...)
// A shuffle does not order memory: only __syncwarp and __syncthreads do.
#pragma once
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include "gpu.cuh"
#else
#include "simt/host.h"
#endif

#ifndef __CUDACC_RTC__  // launchers are no part of a run-time compilation
namespace simt {

// Counts what the same sequence of Smem::take would take.
struct SmemBytes {
  size_t bytes = 0;
  template <typename T>
  constexpr SmemBytes take(size_t count, size_t align = 16) const {
    return {align_up(bytes, align) + count * sizeof(T)};
  }
};

}  // namespace simt
#endif
