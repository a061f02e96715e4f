// Shared memory, asynchronous copies and atomics of correct kernels: right values, and no report under any schedule.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "test.h"

namespace {

using Contents = simt::Buffer::Contents;

// Rows of 64 floats summed by a pipeline of two buffers filled by cp.async.
constexpr int kRows = 10, kWidth = 64;

__global__ void pipeline_kernel(const float* in, float* out, int width) {  // [kRows][kWidth], [kWidth]
  simt::Smem smem;
  float* tiles = smem.take<float>(2 * kWidth);
  const int i = threadIdx.x;
  const auto fetch = [&](int row) {
    if (i < kWidth / 4) {
      const int rest = min(16, max(0, (width - 4 * i) * 4));
      simt::cp_async_16(tiles + (row % 2) * kWidth + 4 * i, in + row * kWidth + 4 * i, rest);
    }
    simt::cp_async_commit();
  };
  fetch(0);
  float sum = 0;
  for (int row = 0; row < kRows; ++row) {
    if (row + 1 < kRows)
      fetch(row + 1);
    else
      simt::cp_async_commit();
    simt::cp_async_wait<1>();
    __syncthreads();  // everybody's part of the row is there
    sum += tiles[(row % 2) * kWidth + i];
    __syncthreads();  // the buffer may be filled again
  }
  out[i] = sum;
}

TEST(a_pipeline_of_asynchronous_copies) {
  alignas(16) float in[kRows * kWidth];
  float out[kWidth];
  std::iota(in, in + kRows * kWidth, 0.0f);
  const simt::Buffer buffers[] = {{"in", in, sizeof in, Contents::initialised},
                                  {"out", out, sizeof out, Contents::uninitialised}};
  const size_t bytes = simt::SmemBytes().take<float>(2 * kWidth).bytes;
  for (int width : {64, 61, 3}) {
    simt::launch("pipeline", pipeline_kernel, 1, kWidth, bytes, nullptr, in, out, width);
    for (int i = 0; i < kWidth; ++i) EXPECT(out[i] == (i < width ? float(kRows * i + kWidth * 45) : 0.0f));
  }
}

struct Counters {
  int *sum, *least, *most, *bits, *claimed;
  unsigned long long* wide;
  float* single;
  double* wider;
};

__global__ void atomics_kernel(Counters p) {
  simt::Smem smem;
  unsigned* local = smem.take<unsigned>(1);
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (threadIdx.x == 0) *local = 0;
  __syncthreads();
  atomicAdd(local, 1u);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(p.sum, int(*local));
  atomicMin(p.least, i);
  atomicMax(p.most, i);
  atomicOr(p.bits, 1 << (i % 31));
  if (atomicCAS(p.claimed, 0, i + 1) == 0) atomicAdd(p.wide, 1ull << 40);
  atomicAdd(p.wide, 1ull);
  atomicAdd(p.single, 0.5f);
  atomicAdd(p.wider, 0.25);
}

TEST(atomics_from_all_blocks) {
  int sum = 0, least = 99, most = -1, bits = 0, claimed = 0;
  unsigned long long wide = 0;
  float single = 0;
  double wider = 0;
  std::vector<simt::Buffer> buffers;
  for (int* p : {&sum, &least, &most, &bits, &claimed}) buffers.emplace_back("int", p, 4, Contents::initialised);
  buffers.emplace_back("wide", &wide, 8, Contents::initialised);
  buffers.emplace_back("single", &single, 4, Contents::initialised);
  buffers.emplace_back("wider", &wider, 8, Contents::initialised);
  simt::launch("atomics", atomics_kernel, 3, 64, simt::SmemBytes().take<unsigned>(1).bytes, nullptr,
               {&sum, &least, &most, &bits, &claimed, &wide, &single, &wider});
  EXPECT(sum == 192);
  EXPECT(least == 0 && most == 191);
  EXPECT(bits == 0x7fffffff);
  EXPECT(claimed >= 1 && claimed <= 192);
  EXPECT(wide == (1ull << 40) + 192);
  EXPECT(single == 96);
  EXPECT(wider == 48);
}

// Lanes write, __syncwarp, others read, __syncwarp, reset: ordered without a barrier of the block.
__global__ void queue_kernel(int* out) {
  simt::Smem smem;
  int* slots = smem.take<int>(64);
  int* mine = slots + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  int sum = 0;
  for (int round = 0; round < 5; ++round) {
    mine[lane] = lane + round;
    __syncwarp();
    sum += mine[(lane + 1) % 32] + mine[7];
    __syncwarp();
  }
  if (lane < 16) {  // and by halves
    mine[lane] = lane;
    __syncwarp(0x0000ffff);
    sum += mine[15 - lane];
  }
  out[threadIdx.x] = sum;
}

TEST(lanes_exchange_through_shared_memory) {
  int out[64];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  simt::launch("queue", queue_kernel, 1, 64, simt::SmemBytes().take<int>(64).bytes, nullptr, out);
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32;
    EXPECT(out[i] == 5 * ((lane + 1) % 32) + 10 + 45 + (lane < 16 ? 15 - lane : 0));
  }
}

// Bytes, halves, words and 16-byte vectors of the same memory.
__global__ void widths_kernel(const uint8_t* in, uint8_t* out, int n) {
  simt::Smem smem;
  uint8_t* bytes = smem.take<uint8_t>(64);
  const int i = threadIdx.x;
  if (i < n) bytes[i] = in[i];
  __syncthreads();
  auto* halves = reinterpret_cast<uint16_t*>(bytes);
  uint16_t half = 0;
  if (i < n / 2) half = halves[i];
  __syncthreads();
  if (i < n / 2) halves[n / 2 - 1 - i] = half;
  __syncthreads();
  if (i < n / 16) simt::store_16B_streaming(out + 16 * i, simt::load_16B(bytes + 16 * i));
}

TEST(accesses_of_all_widths) {
  alignas(16) uint8_t in[64], out[64];
  std::iota(in, in + 64, uint8_t(1));
  const simt::Buffer buffers[] = {{"in", in, sizeof in, Contents::initialised},
                                  {"out", out, sizeof out, Contents::uninitialised}};
  simt::launch("widths", widths_kernel, 1, 64, 64, nullptr, in, out, 64);
  for (int i = 0; i < 64; ++i) EXPECT(out[i] == in[(31 - i / 2) * 2 + i % 2]);
}

// What one launch writes the next may read, in another order of blocks and threads.
__global__ void scale_kernel(const float* in, float* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = 2 * __ldg(&in[gridDim.x * blockDim.x - 1 - i]);
}

TEST(launches_follow_one_another) {
  float in[96], between[96], out[96];
  std::iota(in, in + 96, 0.0f);
  const simt::Buffer buffers[] = {{"in", in, sizeof in, Contents::initialised},
                                  {"between", between, sizeof between, Contents::uninitialised},
                                  {"out", out, sizeof out, Contents::uninitialised}};
  simt::launch("scale", scale_kernel, 3, 32, 0, nullptr, in, between);
  simt::launch("scale", scale_kernel, 3, 32, 0, nullptr, between, out);
  simt::launch("scale", scale_kernel, 3, 32, 0, nullptr, out, in);
  for (int i = 0; i < 96; ++i) EXPECT(in[i] == 8 * float(95 - i));
}

TEST(launches_from_several_threads_take_turns) {
  const auto work = [] {
    float in[96], out[96];
    std::iota(in, in + 96, 0.0f);
    for (int i = 0; i < 20; ++i) {
      const simt::Buffer buffers[] = {{"in", in, sizeof in, Contents::initialised},
                                      {"out", out, sizeof out, Contents::uninitialised}};
      simt::launch("scale", scale_kernel, 3, 32, 0, nullptr, in, out);
    }
    EXPECT(out[0] == 190);
  };
  std::thread other(work);
  work();
  other.join();
}

// In place, and registered as an output first: what the input says of its contents holds.
__global__ void double_kernel(float* x) { x[threadIdx.x] *= 2; }

TEST(an_output_that_is_an_input_too) {
  float x[32] = {1, 2, 3};
  const simt::Buffer buffers[] = {{"out", x, sizeof x, Contents::uninitialised},
                                  {"in", x, sizeof x, Contents::initialised},
                                  {"part", x + 16, 32, Contents::uninitialised}};
  simt::launch("double", double_kernel, 1, 32, 0, nullptr, x);
  EXPECT(x[0] == 2 && x[2] == 6 && x[3] == 0);
}

__global__ void intrinsics_kernel(double* out) {
  out[0] = __popc(0xf0f0u) + __popcll(~0ull) + __ffs(8) + __ffsll(0) + __clz(1) + __clzll(1);
  out[1] = __int_as_float(__float_as_int(1.5f)) + __uint_as_float(__float_as_uint(2.0f));
  out[2] = __longlong_as_double(__double_as_longlong(0.1));
  out[3] = __fadd_rn(__fmul_rn(3.0f, 5.0f), 1.0f) + __dadd_rn(__dmul_rn(2.0, 4.0), __dsub_rn(1.0, 0.5));
  out[4] = rsqrt(4.0) + rsqrtf(0.25f) + fmaf(2.0f, 3.0f, 1.0f) + fma(2.0, 2.0, 1.0);
  out[5] = min(3, 4) + max(2u, 7u) + min(1.5f, 2.5f) + max(1.0, 0.5);
  const float4 v = make_float4(1, 2, 3, 4);
  out[6] = v.x + v.w + make_int2(5, 6).y + warpSize;
}

TEST(intrinsics) {
  double out[7];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  simt::launch("intrinsics", intrinsics_kernel, 1, 1, 0, nullptr, out);
  const double expected[] = {8 + 64 + 4 + 0 + 31 + 63, 3.5, 0.1, 24.5, 14.5, 12.5, 43};
  for (int i = 0; i < 7; ++i) EXPECT(out[i] == expected[i]);
}

}  // namespace
