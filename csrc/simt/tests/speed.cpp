// How fast the emulator is: lane-steps a second (one lane, one operation) of loops that do little else. Not a test.
#include <chrono>

#include "test.h"

namespace {

constexpr int kSteps = 2000, kThreads = 256, kBlocks = 4;

__global__ void shuffles(float* out) {
  float value = float(threadIdx.x);
  for (int i = 0; i < kSteps; ++i) value = __shfl_xor_sync(0xffffffff, value, 1 << (i % 5));
  out[blockIdx.x * kThreads + threadIdx.x] = value;
}

__global__ void barriers(float* out) {
  for (int i = 0; i < kSteps; ++i) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = 1;
}

__global__ void loads(float* out) {
  simt::Smem smem;
  volatile float* slots = smem.take<float>(kThreads);
  slots[threadIdx.x] = 1;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kSteps; ++i) sum += slots[(threadIdx.x + unsigned(i)) % kThreads];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

__global__ void products(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  for (int i = 0; i < kSteps / 10; ++i) simt::mma_16816_bf16(d, a, b);
  out[blockIdx.x * kThreads + threadIdx.x] = d[0];
}

}  // namespace

int main() {
  static float out[kThreads * kBlocks];
  const simt::Buffer buffer("out", out, sizeof out, simt::Buffer::Contents::uninitialised);
  struct Loop {
    const char* name;
    void (*kernel)(float*);
    int steps;
  };
  for (const auto& [order, name] : {std::pair(simt::Order::ascending, "ascending"), {simt::Order::random, "random"}}) {
    simt::set_schedule(order, 1);
    for (const Loop& loop : {Loop{"shuffles", shuffles, kSteps},
                             {"barriers", barriers, kSteps},
                             {"shared loads", loads, kSteps},
                             {"mma", products, kSteps / 10}}) {
      double best = 1e9;
      for (int repeat = 0; repeat < 3; ++repeat) {
        const auto begin = std::chrono::steady_clock::now();
        simt::launch(loop.name, loop.kernel, kBlocks, kThreads, sizeof(float) * kThreads, nullptr, out);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
      std::printf("%-10s %-13s %6.1f million lane-steps a second\n", name, loop.name,
                  1e-6 * kBlocks * kThreads * loop.steps / best);
    }
  }
}
