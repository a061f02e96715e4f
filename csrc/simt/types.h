// CUDA's vector types, and the words of a kernel's source that mean nothing to a CPU.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static_assert(false, "static __shared__: take dynamic shared memory, simt::Smem, instead");

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define SIMT_VECTORS(T, name)                                                               \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                        \
  struct alignas(16) name##4 { T x, y, z, w; };                                             \
  __attribute__((always_inline)) inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  __attribute__((always_inline)) inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(int, int)
SIMT_VECTORS(unsigned, uint)
SIMT_VECTORS(float, float)
#undef SIMT_VECTORS

struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
