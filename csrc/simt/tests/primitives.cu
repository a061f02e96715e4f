// Every name that simt.cuh offers to kernels, used once: both halves must compile it.
#include "kernels/simt.cuh"

struct Params {
  const uint4* in;
  float* out;
  int32_t* counts;
  double* wide;
  unsigned long long* large;
  int n;
};

template <typename T>
__device__ T shuffled(T x) {
  x += __shfl_sync(0xffffffff, x, 3);
  x += __shfl_up_sync(0xffffffff, x, 1u, 16);
  x += __shfl_down_sync(0xffffffff, x, 1u, 8);
  return x + __shfl_xor_sync(0xffffffff, x, 1);
}

__global__ void __launch_bounds__(128) primitives(Params p) {
  simt::Smem smem;
  uint4* tile = smem.take<uint4>(128);
  float* sums = smem.take<float>(32, 128);
  const int i = threadIdx.x + threadIdx.y * blockDim.x, lane = i % warpSize;

  simt::cp_async_16(tile + i, p.in + i);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  simt::cp_async_16(tile + i, p.in + i, p.n);
  simt::cp_async_commit();
  simt::cp_async_commit();
  simt::cp_async_wait<1>();
  __syncthreads();

  uint32_t a[4], b[2], c[4], e[2];
  simt::ldmatrix_x4(a, tile + lane);
  simt::ldmatrix_x2(b, tile + lane);
  simt::ldmatrix_x4_trans(c, tile + lane);
  simt::ldmatrix_x2_trans(e, tile + lane);
  float d[4] = {};
  int32_t s[4] = {};
  simt::mma_16816_bf16(d, a, b);
  simt::mma_16816_f16(d, c, e);
  simt::mma_1688_tf32(d, a, b);
  simt::mma_16832_s8(s, c, b);

  int votes = __syncthreads_or(p.n) + __syncthreads_and(p.n) + __syncthreads_count(p.n);
  votes += int(__ballot_sync(0xffffffff, i & 1)) + __any_sync(0xffffffff, p.n) + __all_sync(0xffffffff, p.n);
  votes += __reduce_add_sync(0xffffffff, i) + __reduce_min_sync(0xffffffff, i) + __reduce_max_sync(0xffffffff, i);
  votes += int(__reduce_add_sync(0xffffffff, 1u) + __reduce_min_sync(0xffffffff, 1u) + __reduce_max_sync(0xffffffff, 1u) +
               __reduce_and_sync(0xffffffff, 1u) + __reduce_or_sync(0xffffffff, 1u) + __reduce_xor_sync(0xffffffff, 1u));
  votes += __popc(7u) + __popcll(7ull) + __ffs(8) + __ffsll(8ll) + __clz(1) + __clzll(1ll);
  if (lane < 32) sums[lane] = 0;
  __syncwarp();

  const double x = shuffled(double(i)) + shuffled(float(i)) + shuffled(i) + shuffled(unsigned(i)) + double(shuffled(int64_t(i)));
  simt::store_16B(p.out + 4 * i, simt::load_16B(p.in + i));
  simt::store_16B_streaming(p.out + 4 * i, __ldg(p.in + i));
  const float f = fmaf(expf(d[0]), exp2f(d[1]), log1pf(d[2]) + expm1f(d[3])) + __fmul_rn(d[0], d[1]) + __fadd_rn(d[2], d[3]);
  const double g = fma(x, sqrt(x), rsqrt(x) + log1p(x)) + __dmul_rn(x, x) + __dadd_rn(x, x) + __dsub_rn(x, 1.0);
  atomicAdd(p.out, f + __int_as_float(__float_as_int(f)) + __uint_as_float(__float_as_uint(f)) + rsqrtf(f));
  atomicAdd(p.wide, g + __longlong_as_double(__double_as_longlong(g)));
  const auto all = [](auto* at, auto v) {
    atomicAdd(at, v), atomicMin(at, v), atomicMax(at, v), atomicExch(at, v), atomicCAS(at, v, v), atomicAnd(at, v);
    atomicOr(at, v);
  };
  all(p.counts, votes + s[0]);
  all(reinterpret_cast<unsigned*>(p.counts), unsigned(votes));
  all(p.large, static_cast<unsigned long long>(votes));
  const float4 v = make_float4(f, f, f, f);
  const int2 w = make_int2(i, max(i, min(p.n, 3)));
  if (v.x < 0) p.counts[w.y] = w.x;
}

void launch_primitives(const Params& p, simt::Stream stream) {
  const size_t bytes = simt::SmemBytes().take<uint4>(128).take<float>(32, 128).bytes;
  simt::launch("primitives", primitives, dim3(1), dim3(64, 2), bytes, stream, p);
}
