// Shuffles, votes, reductions and barriers against what CUDA's manual says of them, lane by lane.
#include <algorithm>
#include <numeric>

#include "test.h"

namespace {

using Contents = simt::Buffer::Contents;

template <typename T>
struct Shuffled {
  T *index, *up, *down, *exclusive_or;  // [32] out
  int by, width;
};

template <typename T>
__global__ void shuffle_kernel(Shuffled<T> p) {
  const int lane = threadIdx.x;
  const T value = T(lane) * 3 + T(1);
  p.index[lane] = __shfl_sync(0xffffffff, value, p.by, p.width);
  p.up[lane] = __shfl_up_sync(0xffffffff, value, p.by, p.width);
  p.down[lane] = __shfl_down_sync(0xffffffff, value, p.by, p.width);
  p.exclusive_or[lane] = __shfl_xor_sync(0xffffffff, value, p.by, p.width);
}

template <typename T>
void check_shuffles() {
  T out[4][32];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  for (int width = 1; width <= 32; width *= 2) {
    for (int by = 0; by < 32; ++by) {
      simt::launch("shuffle", shuffle_kernel<T>, 1, 32, 0, nullptr, {out[0], out[1], out[2], out[3], by, width});
      for (int lane = 0; lane < 32; ++lane) {
        const auto value = [](int from) { return T(from) * 3 + T(1); };
        const int first = lane / width * width, last = first + width - 1;
        EXPECT(out[0][lane] == value(first + by % width));
        EXPECT(out[1][lane] == value(lane - by < first ? lane : lane - by));
        EXPECT(out[2][lane] == value(lane + by > last ? lane : lane + by));
        EXPECT(out[3][lane] == value((lane ^ by) > last ? lane : lane ^ by));
      }
    }
  }
}

TEST(shuffles_of_all_modes_and_widths) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<int64_t>();
  check_shuffles<long long>();
}

// Each half of a warp on its own, in different code and a different number of times.
__global__ void halves_kernel(int* out) {
  const int lane = threadIdx.x;
  int value = lane;
  if (lane < 16) {
    for (int by = 8; by > 0; by /= 2) value += __shfl_xor_sync(0x0000ffff, value, by);
  } else {
    for (int by = 8; by > 0; by /= 2) value = max(value, __shfl_down_sync(0xffff0000, value, by, 16));
    value = __shfl_sync(0xffff0000, value, 0, 16);
  }
  out[lane] = value;
}

TEST(halves_of_a_warp_shuffle_apart) {
  int out[32];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  simt::launch("halves", halves_kernel, 1, 32, 0, nullptr, out);
  for (int lane = 0; lane < 32; ++lane) EXPECT(out[lane] == (lane < 16 ? 120 : 31));
}

struct Votes {
  unsigned* ballot;                        // [64] out
  int *any, *all;                          // [64] out
  int *sum, *least, *most;                 // [64] out
  unsigned *sum_unsigned, *most_unsigned;  // [64] out
};

__global__ void votes_kernel(Votes p) {
  const int i = threadIdx.x;
  p.ballot[i] = __ballot_sync(0xffffffff, i % 3 == 0);
  p.any[i] = __any_sync(0xffffffff, i == 40);
  p.all[i] = __all_sync(0xffffffff, i < 40);
  p.sum[i] = __reduce_add_sync(0xffffffff, i - 20);
  p.least[i] = __reduce_min_sync(0xffffffff, i - 20);
  p.most[i] = __reduce_max_sync(0xffffffff, i - 40);
  p.sum_unsigned[i] = __reduce_add_sync(0xffffffff, 0x10000000u + unsigned(i));
  p.most_unsigned[i] = __reduce_max_sync(0xffffffff, unsigned(i - 40));
}

TEST(votes_and_reductions) {
  static unsigned ballot[64], sum_unsigned[64], most_unsigned[64];
  static int any[64], all[64], sum[64], least[64], most[64];
  std::vector<simt::Buffer> buffers;
  for (void* out : {static_cast<void*>(ballot), static_cast<void*>(sum_unsigned), static_cast<void*>(most_unsigned),
                    static_cast<void*>(any), static_cast<void*>(all), static_cast<void*>(sum),
                    static_cast<void*>(least), static_cast<void*>(most)}) {
    buffers.emplace_back("out", out, sizeof sum, Contents::uninitialised);
  }
  simt::launch("votes", votes_kernel, 1, 64, 0, nullptr,
               {ballot, any, all, sum, least, most, sum_unsigned, most_unsigned});
  for (int i = 0; i < 64; ++i) {
    const int first = i / 32 * 32;
    unsigned bits = 0;
    int total = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= unsigned((first + lane) % 3 == 0) << lane, total += first + lane - 20;
    EXPECT(ballot[i] == bits);
    EXPECT(any[i] == (first == 32));
    EXPECT(all[i] == (first == 0));
    EXPECT(sum[i] == total);
    EXPECT(least[i] == first - 20);
    EXPECT(most[i] == first + 31 - 40);
    EXPECT(sum_unsigned[i] == unsigned(total + 20 * 32));
    EXPECT(most_unsigned[i] == (first == 0 ? unsigned(-9) > unsigned(-40) ? unsigned(-9) : 0u : unsigned(-1)));
  }
}

__global__ void barriers_kernel(int* out) {  // [4][96]
  const int i = threadIdx.y * blockDim.x + threadIdx.x;
  out[i] = __syncthreads_or(i == 70);
  out[96 + i] = __syncthreads_and(i != 70);
  out[192 + i] = __syncthreads_count(i % 2);
  __syncthreads();
  out[288 + i] = __syncthreads_or(0) + 2 * __syncthreads_and(1);
}

TEST(barriers_that_count_and_vote) {
  int out[4 * 96];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  simt::launch("barriers", barriers_kernel, 1, dim3(32, 3), 0, nullptr, out);
  for (int i = 0; i < 96; ++i) {
    EXPECT(out[i] == 1);
    EXPECT(out[96 + i] == 0);
    EXPECT(out[192 + i] == 48);
    EXPECT(out[288 + i] == 2);
  }
}

// Lanes leave early, the others carry on with masks that do not name them; so does a whole warp.
__global__ void early_exit_kernel(int* out, int n) {
  const int i = threadIdx.x;
  const unsigned mask = __ballot_sync(0xffffffff, i < n);
  if (i >= n) return;
  int value = 1;
  for (int by = 16; by > 0; by /= 2) {
    const int other = __shfl_down_sync(mask, value, by < __popc(mask) - i % 32 ? by : 0);
    value += other;
  }
  out[i] = __popc(mask);
  __syncwarp();
}

TEST(lanes_that_exit_early_are_not_missed) {
  int out[96];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  std::fill(out, out + 96, -1);
  simt::launch("early_exit", early_exit_kernel, 1, 96, 0, nullptr, out, 40);
  for (int i = 0; i < 96; ++i) EXPECT(out[i] == (i < 32 ? 32 : i < 40 ? 8 : -1));
}

// A block reduction over a grid of three dimensions, every thread's indices in the sum.
__global__ void __launch_bounds__(256) indices_kernel(int64_t* out) {
  simt::Smem smem;
  int64_t* slots = smem.take<int64_t>(8);
  const int i = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int64_t value = int64_t(i) * 7 + blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z;
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffff, value, by);
  if (i % 32 == 0) slots[i / 32] = value;
  __syncthreads();
  if (i == 0) {
    int64_t total = 0;
    for (int w = 0; w < 8; ++w) total += slots[w];
    out[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = total;
  }
}

TEST(grids_and_blocks_of_three_dimensions) {
  int64_t out[2 * 3 * 4];
  const simt::Buffer buffer("out", out, sizeof out, Contents::uninitialised);
  simt::launch("indices", indices_kernel, dim3(4, 3, 2), dim3(8, 8, 4), simt::SmemBytes().take<int64_t>(8).bytes,
               nullptr, out);
  for (int i = 0; i < 24; ++i) {
    EXPECT(out[i] == 7 * 255 * 128 + 256 * (i % 4 + 10 * (i / 4 % 3) + 100 * (i / 12)));
  }
}

TEST(a_grid_of_zero_is_no_launch) {
  simt::launch("nothing", indices_kernel, dim3(0), 256, 64, nullptr, nullptr);
  simt::launch("nothing", indices_kernel, dim3(4, 0), 256, 64, nullptr, nullptr);
}

}  // namespace
