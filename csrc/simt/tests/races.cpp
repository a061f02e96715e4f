// Kernels with a planted race, which must be reported under every schedule, beside the same kernels without it, which
// must not: `fixed` is the only difference.
#include "test.h"

namespace {

using Contents = simt::Buffer::Contents;
constexpr int kThreads = 128;

alignas(16) float in[4 * kThreads];
float out[kThreads];
int counter;

// Launches a kernel over the buffers above, right and wrong; the wrong one must give a report with all of the parts.
template <typename Kernel>
void check(Kernel* fixed, Kernel* broken, const std::vector<std::string>& parts, int line, unsigned blocks = 1,
           size_t shared_bytes = 4096) {
  const simt::Buffer buffers[] = {{"in", in, sizeof in, Contents::initialised},
                                  {"out", out, sizeof out, Contents::initialised},
                                  {"counter", &counter, sizeof counter, Contents::initialised}};
  const auto report = [&](Kernel* kernel) {
    return test::report_of([&] { simt::launch("planted", kernel, blocks, kThreads, shared_bytes, nullptr); });
  };
  test::expect(report(fixed).empty(), "no report, got: " + report(fixed), line);
  const std::string found = report(broken);
  test::expect_report(found, {"kernel planted, block (", "thread (", "races.cpp:"}, line);
  test::expect_report(found, parts, line);
}
#define CHECK_BUG(kernel, ...) check(kernel<true>, kernel<false>, {__VA_ARGS__}, __LINE__)

template <bool fixed>
__global__ void block_reduction() {
  simt::Smem smem;
  float* slots = smem.take<float>(kThreads / 32);
  const int i = threadIdx.x;
  float sum = in[i];
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffff, sum, by);
  if (i % 32 == 0) slots[i / 32] = sum;
  if (fixed) __syncthreads();
  float total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += slots[w];
  out[i] = total;
}
// In some orders a slot is read before it is written: then it is uninitialised first.
TEST(missing_barrier_in_a_block_reduction) {
  CHECK_BUG(block_reduction, "of shared array of float (16 bytes, taken at ");
}

template <bool fixed>
__global__ void initialised_reduction() {
  simt::Smem smem;
  float* slots = smem.take<float>(kThreads);
  const int i = threadIdx.x;
  slots[i] = 0;
  __syncthreads();
  slots[i] = in[i];
  if (fixed) __syncthreads();
  out[i] = slots[(i + 64) % kThreads];
}
TEST(missing_barrier_between_warps) {
  CHECK_BUG(initialised_reduction, "race: ", "no barrier between", "4 bytes at byte ");
}

template <bool fixed>
__global__ void refilled() {
  simt::Smem smem;
  float* tile = smem.take<float>(kThreads);
  const int i = threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 4; ++round) {
    tile[i] = in[round * kThreads + i];
    __syncthreads();
    sum += tile[kThreads - 1 - i];
    if (fixed) __syncthreads();
  }
  out[i] = sum;
}
TEST(missing_barrier_before_a_buffer_is_refilled) { CHECK_BUG(refilled, "race: ", "no barrier between"); }

template <bool fixed>
__global__ void no_syncwarp() {
  simt::Smem smem;
  int* slots = smem.take<int>(kThreads);
  int* mine = slots + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  mine[lane] = lane;
  __syncwarp();
  int sum = mine[(lane + 1) % 32];
  sum = __shfl_xor_sync(0xffffffff, sum, 1);  // orders no memory
  if (fixed) __syncwarp();
  mine[lane] = sum;
}
TEST(missing_syncwarp_between_reads_and_a_reset) { CHECK_BUG(no_syncwarp, "race: ", "no __syncwarp between"); }

template <bool fixed>
__global__ void half_syncwarp() {
  simt::Smem smem;
  int* slots = smem.take<int>(kThreads);
  int* mine = slots + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  mine[lane] = lane;
  if (lane < 16)
    __syncwarp(0x0000ffff);
  else
    __syncwarp(0xffff0000);
  mine[lane ^ 5] = lane;  // ordered: the same half
  if (fixed) {
    __syncwarp();
  } else {
    if (lane < 16)
      __syncwarp(0x0000ffff);
    else
      __syncwarp(0xffff0000);
  }
  mine[lane ^ 16] = lane;  // the other half
}
TEST(syncwarp_of_half_the_lanes) { CHECK_BUG(half_syncwarp, "race: writes 4 bytes", "wrote", "no __syncwarp between"); }

// Lane 0 reads, syncs with lane 1; lane 1 reads, syncs with lane 2; lane 2 writes: ordered through a chain of masks.
template <bool fixed>
__global__ void chain() {
  simt::Smem smem;
  int* slot = smem.take<int>(1);
  const int i = threadIdx.x;
  if (i == 0) *slot = 1;
  __syncthreads();
  int value = 0;
  if (i == 0) value = *slot, __syncwarp(1 | 2);
  if (i == 1) {
    if (fixed) __syncwarp(1 | 2);
    value = *slot;
    if (!fixed) __syncwarp(1 | 2);  // its read may still be under way when lane 2 writes
    if (fixed) __syncwarp(2 | 4);
  }
  if (i == 2) {
    if (fixed) __syncwarp(2 | 4);
    *slot = 2;
  }
  out[i] = float(value);
}
TEST(chains_of_syncwarps) { CHECK_BUG(chain, "race: ", "no __syncwarp between"); }

// Lanes 0 and 2 read before and after a __syncwarp of lanes 1 and 2; lane 1 writes and must have met both since.
template <bool fixed>
__global__ void reads_at_different_times() {
  simt::Smem smem;
  int* slot = smem.take<int>(1);
  const int i = threadIdx.x;
  if (i == 0) *slot = 1;
  __syncthreads();
  if (i == 0) {
    out[i] = float(*slot);
    __syncwarp(1 | 2);
  }
  if (i == 1) {
    __syncwarp(2 | 4);
    __syncwarp(1 | 2);
    if (fixed) __syncwarp(2 | 4);
    *slot = 2;
  }
  if (i == 2) {
    __syncwarp(2 | 4);
    out[i] = float(*slot);
    if (fixed) __syncwarp(2 | 4);
  }
}
TEST(lanes_that_read_at_different_times) { CHECK_BUG(reads_at_different_times, "race: ", "no __syncwarp between"); }

template <bool fixed>
__global__ void late_write() {
  simt::Smem smem;
  int* slot = smem.take<int>(1);
  const int i = threadIdx.x;
  if (i == 0) *slot = 1;
  __syncthreads();
  out[i] = float(*slot);
  __syncwarp();
  if (fixed) __syncthreads();
  if (i == kThreads - 1) *slot = 2;
}
TEST(write_beside_reads_of_other_warps) { CHECK_BUG(late_write, "race: ", "no barrier between"); }

template <bool fixed>
__global__ void copy_without_barrier() {
  simt::Smem smem;
  float* tile = smem.take<float>(4 * kThreads);
  const int i = threadIdx.x;
  simt::cp_async_16(tile + 4 * i, in + 4 * i);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  if (fixed) __syncthreads();
  out[i] = tile[(4 * i + 256) % (4 * kThreads)];
}
TEST(missing_barrier_after_the_wait_for_a_copy) { CHECK_BUG(copy_without_barrier, "of shared array of float"); }

template <bool fixed>
__global__ void copy_into_use() {
  simt::Smem smem;
  float* tile = smem.take<float>(4 * kThreads);
  const int i = threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    simt::cp_async_16(tile + 4 * i, in + 4 * i);
    simt::cp_async_commit();
    simt::cp_async_wait<0>();
    __syncthreads();
    sum += tile[(4 * i + 256) % (4 * kThreads)];
    if (fixed) __syncthreads();
  }
  out[i] = sum;
}
TEST(copy_into_a_buffer_that_others_still_read) { CHECK_BUG(copy_into_use, "of shared array of float"); }

template <bool fixed>
__global__ void same_value() {
  simt::Smem smem;
  int* flag = smem.take<int>(1);
  if (fixed ? threadIdx.x == 0 : in[threadIdx.x] >= 0) *flag = 1;
  __syncthreads();
  out[threadIdx.x] = float(*flag);
}
TEST(all_write_the_same_value) { CHECK_BUG(same_value, "race: writes 4 bytes", "wrote"); }

template <bool fixed>
__global__ void atomic_and_plain() {
  simt::Smem smem;
  int* count = smem.take<int>(1);
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  atomicAdd(count, 1);
  if (fixed) __syncthreads();
  out[threadIdx.x] = float(*count);
}
TEST(plain_read_beside_atomics) { CHECK_BUG(atomic_and_plain, "race: ", "no "); }

template <bool fixed>
__global__ void atomic_and_write() {
  simt::Smem smem;
  int* count = smem.take<int>(1);
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (fixed || threadIdx.x != 77)
    atomicAdd(count, 1);
  else
    *count = *count + 1;
}
TEST(plain_write_beside_atomics) { CHECK_BUG(atomic_and_write, "race: "); }

template <bool fixed>
__global__ void between_blocks() {
  const int i = threadIdx.x;
  if (fixed && blockIdx.x > 0) return;
  out[i] = float(blockIdx.x);
}
TEST(blocks_write_the_same_elements) {
  check(between_blocks<true>, between_blocks<false>,
        {"race: writes 4 bytes at byte ", "of out (512 bytes)", "another block"}, __LINE__, 3);
}

template <bool fixed>
__global__ void block_reads_what_another_writes() {
  const int i = threadIdx.x;
  if (blockIdx.x == 1)
    in[i] = 1;
  else if (!fixed)
    out[i % 8 + 8 * blockIdx.x] = in[0];
}
TEST(a_block_reads_what_another_writes) {
  check(block_reads_what_another_writes<true>, block_reads_what_another_writes<false>, {"race: "}, __LINE__, 2);
}

// Every block reads, then one of them writes what all have read, after its own barrier.
template <bool fixed>
__global__ void blocks_read_then_write() {
  float value = in[0];
  __syncthreads();
  if (threadIdx.x == 0) (fixed ? out : in)[fixed ? blockIdx.x : 0] = value;
}
TEST(a_barrier_does_not_order_blocks) {
  check(blocks_read_then_write<true>, blocks_read_then_write<false>, {"race: ", "of in (2048 bytes)", "another block"},
        __LINE__, 2);
}

template <bool fixed>
__global__ void one_block_writes_at_its_end() {
  const float value = in[0];
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 1 && !fixed) in[0] = value;
}
TEST(a_block_writes_what_it_and_others_have_read) {
  check(one_block_writes_at_its_end<true>, one_block_writes_at_its_end<false>, {"race: ", "another block"}, __LINE__,
        2);
}

template <bool fixed>
__global__ void counted_by_blocks() {
  atomicAdd(&counter, 1);
  __syncthreads();
  if (!fixed && threadIdx.x == 0) out[blockIdx.x] = float(counter);
}
TEST(a_plain_read_beside_atomics_of_other_blocks) {
  check(counted_by_blocks<true>, counted_by_blocks<false>, {"race: ", "4 bytes at byte 0 of counter", "another block"},
        __LINE__, 2);
}

}  // namespace
