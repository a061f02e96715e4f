// The GPU half of simt.cuh: all inline PTX of the project, one primitive a function, for sm_80 and later.
//
// A mistake in a line of PTX is invisible to tests without a GPU. Checked by hand against PTX ISA 9.0, operand by operand:
//   cp.async     destination (.shared, 32-bit address) before source (.global, 64-bit); .cg takes 16 bytes only; the last
//                operand is src-size, the rest of the 16 bytes is zeros; both addresses aligned to 16
//   wait_group N all but the N groups committed last are complete (so 0 is all); an immediate; of the calling thread alone
//   ldmatrix     registers before address; .b16 m8n8; lane 8i + j addresses row j of matrix i; register i holds matrix i
//   mma          d, a, b, c; a and b as .b32 registers of 1, 2 or 4 packed elements, c and d as .f32 ("f") or .s32 ("r");
//                .row.col is the only layout there is; without .satfinite s32 wraps
// The layouts of the fragments (csrc/simt/matrices.cpp) were also compared with CUTLASS's for SM80, stride by stride.
#pragma once
#include <cmath>
#include <cstdint>
#ifndef __CUDACC_RTC__  // NVRTC, which has no standard library, finds those two in csrc/nvrtc
#include <cstddef>
#include <stdexcept>
#include <string>
#endif

namespace simt {

__host__ __device__ constexpr size_t align_up(size_t offset, size_t align) {
  return (offset + align - 1) / align * align;
}

// Arrays of dynamic shared memory, one behind the other; offsets of constant sizes fold to constants.
class Smem {
 public:
  template <typename T>
  __device__ __forceinline__ T* take(size_t count, size_t align = 16) {
    extern __shared__ __align__(128) unsigned char simt_shared[];
    const size_t begin = align_up(end_, align);
    end_ = begin + count * sizeof(T);
    return reinterpret_cast<T*>(simt_shared + begin);
  }

 private:
  size_t end_ = 0;
};

// The address of shared memory as PTX wants it: 32 bits in the window of .shared.
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// --- asynchronous copies, both addresses 16-byte aligned ------------------------------------------------------------------
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// The first `bytes` (0 to 16) are read, the rest of the 16 are written as zeros.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of the groups committed last are under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- 8x8 matrices of 16-bit elements from shared memory; lane 8i + j gives the address of row j of matrix i ---------------
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared))
               : "memory");
}

// --- d += a * b on the tensor cores: a by rows, b by columns, d float32 or int32 ------------------------------------------
__device__ __forceinline__ void mma_16816_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16816_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The unit reads the upper 19 bits of each float32 (sign, 8 exponent, 10 mantissa): round before, or it truncates.
__device__ __forceinline__ void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Sums wrap at 32 bits.
__device__ __forceinline__ void mma_16832_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- 16 bytes at once, at a 16-byte aligned address --------------------------------------------------------------------------
__device__ __forceinline__ uint4 load_16B(const void* from) { return *static_cast<const uint4*>(from); }
__device__ __forceinline__ void store_16B(void* to, uint4 value) { *static_cast<uint4*>(to) = value; }
// To global memory that this kernel does not read again: first to leave the caches.
__device__ __forceinline__ void store_16B_streaming(void* to, uint4 value) { __stcs(static_cast<uint4*>(to), value); }

#ifndef __CUDACC_RTC__
using Stream = void*;  // a cudaStream_t, so that callers need no CUDA header

template <typename T>
struct Exactly {
  using type = T;
};

// One launch, checked. A grid of zero blocks is no launch.
template <typename... Params>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            typename Exactly<Params>::type... params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kGranted = 48 * 1024;  // more must be asked for
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kGranted) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params...);
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, not by whoever asks next
  const auto size = [](dim3 d) {
    return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
  };
  throw std::runtime_error(std::string(name) + ": launch of " + size(grid) + " blocks of " + size(block) + " threads with " +
                           std::to_string(shared_bytes) + " bytes of shared memory: " + cudaGetErrorString(error));
}
#endif

}  // namespace simt
