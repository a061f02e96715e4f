// Planted bugs other than races: each must be reported under every schedule, and its repaired twin must not.
#include "test.h"

int nobody_registered_this[4];

namespace {

using Contents = simt::Buffer::Contents;
constexpr int kThreads = 64;

alignas(16) float in[4 * kThreads + 4];
alignas(16) float out[4 * kThreads];

template <typename Kernel>
std::string report(Kernel* kernel, size_t shared_bytes = 1024, Contents contents = Contents::initialised) {
  const simt::Buffer buffers[] = {{"in", in, 4 * kThreads * sizeof(float), contents},
                                  {"out", out, sizeof out, Contents::uninitialised}};
  return test::report_of([&] { simt::launch("planted", kernel, 1, kThreads, shared_bytes, nullptr); });
}

template <typename Kernel>
void check(Kernel* fixed, Kernel* broken, const std::vector<std::string>& parts, int line) {
  test::expect(report(fixed).empty(), "no report, got: " + report(fixed), line);
  const std::string found = report(broken);
  test::expect_report(found, {"kernel planted, block (0, 0, 0), thread ("}, line);
  test::expect_report(found, parts, line);
}
#define CHECK_BUG(kernel, ...) check(kernel<true>, kernel<false>, {__VA_ARGS__}, __LINE__)

// --- barriers and masks: the emulator's own, also without the compiler's hooks
// ---------------------------------------------

template <bool fixed>
__global__ void shuffle_in_a_branch() {
  int value = threadIdx.x;
  if (fixed || threadIdx.x % 32 < 16) value = __shfl_xor_sync(0xffffffff, value, 1);
  __syncthreads();
  out[threadIdx.x] = float(value);
}
TEST(full_mask_shuffle_in_a_divergent_branch) {
  CHECK_BUG(shuffle_in_a_branch, "__shfl_xor_sync", "__syncthreads", "bugs.cpp:");
}

template <bool fixed>
__global__ void shuffles_in_both_branches() {
  int value = threadIdx.x;
  if (fixed || threadIdx.x % 32 < 16)
    value = __shfl_xor_sync(0xffffffff, value, 1);
  else
    value = __shfl_xor_sync(0xffffffff, value, 2);
  out[threadIdx.x] = float(value);
}
TEST(full_mask_shuffles_in_both_branches) {
  CHECK_BUG(shuffles_in_both_branches, "divergent lanes: comes to __shfl_xor_sync with mask 0xffffffff", "bugs.cpp:");
}

template <bool fixed>
__global__ void mask_names_the_exited() {
  if (threadIdx.x % 32 >= 20) return;
  out[threadIdx.x] = float(__ballot_sync(fixed ? 0x000fffffu : 0x001fffffu, 1));
}
TEST(mask_that_names_a_lane_that_has_exited) {
  CHECK_BUG(mask_names_the_exited, "__ballot_sync", "mask 0x001fffff", "bugs.cpp:");
}

template <bool fixed>
__global__ void mask_lacks_self() {
  const int lane = threadIdx.x % 32;
  if (lane < 8) out[threadIdx.x] = float(__reduce_add_sync(fixed ? 0xffu : 0x7fu, lane));
}
TEST(mask_that_lacks_the_calling_lane) {
  CHECK_BUG(mask_lacks_self, "__reduce_add_sync: mask 0x0000007f lacks the calling lane 7", "bugs.cpp:");
}

template <bool fixed>
__global__ void source_outside() {
  const int lane = threadIdx.x % 32;
  if (lane < 8) out[threadIdx.x] = __shfl_down_sync(0xffu, float(lane), fixed ? 4 : 8, fixed ? 8 : 32);
}
TEST(shuffle_from_a_lane_that_the_mask_does_not_name) {
  CHECK_BUG(source_outside, "__shfl_down_sync: reads lane ", "which the mask does not name", "bugs.cpp:");
}

template <bool fixed>
__global__ void odd_width() {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffff, 1.0f, 1, fixed ? 16 : 12);
}
TEST(width_that_is_no_power_of_two) { CHECK_BUG(odd_width, "expected a width of 1, 2, 4, 8, 16 or 32, got 12"); }

template <bool fixed>
__global__ void two_barriers() {
  if (fixed || threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
TEST(warps_at_different_barriers) { CHECK_BUG(two_barriers, "divergent barriers", "bugs.cpp:"); }

template <bool fixed>
__global__ void missing_at_barrier() {
  if (!fixed && threadIdx.x == 5) return;
  __syncthreads();
}
TEST(thread_that_never_comes_to_the_barrier) { CHECK_BUG(missing_at_barrier, "__syncthreads", "exit", "bugs.cpp:"); }

// A plain deadlock: halves of a warp wait in different pairs of lanes.
template <bool fixed>
__global__ void crossed() {
  const int lane = threadIdx.x % 32;
  if (lane == 0) __syncwarp(0x3), fixed ? __syncwarp(0x5) : __syncwarp(0x5);
  if (lane == 1) fixed ? __syncwarp(0x3) : __syncwarp(0x6), fixed ? __syncwarp(0x6) : __syncwarp(0x3);
  if (lane == 2) __syncwarp(0x5), __syncwarp(0x6);
}
TEST(deadlock_names_who_waits_where) { CHECK_BUG(crossed, "deadlock", "in __syncwarp (", "bugs.cpp:"); }

// --- memory
// -------------------------------------------------------------------------------------------------------------------

template <bool fixed>
__global__ void too_little_shared() {
  simt::Smem smem;
  smem.take<float>(100);
  float* last = smem.take<float>(fixed ? 156 : 157);
  last[threadIdx.x] = 0;
}
TEST(too_little_shared_memory_launched) {
  CHECK_BUG(too_little_shared, "arrays need 1028 bytes, the launch gives 1024", "bugs.cpp:");
}

template <bool fixed>
__global__ void two_layouts() {
  simt::Smem smem;
  smem.take<int>(fixed || threadIdx.x < 32 ? 64 : 32);
}
TEST(threads_that_disagree_about_shared_memory) { CHECK_BUG(two_layouts, "which overlap shared array of int"); }

template <bool fixed>
__global__ void copy_misaligned() {
  simt::Smem smem;
  float* tile = smem.take<float>(128);
  if (threadIdx.x == 0) simt::cp_async_16(tile, in + (fixed ? 4 : 5));
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
}
TEST(copy_from_a_misaligned_address) {
  CHECK_BUG(copy_misaligned, "cp_async_16: ", "not 16-byte aligned", "bugs.cpp:");
}

template <bool fixed>
__global__ void vector_misaligned() {
  if (threadIdx.x == 3) simt::store_16B(out + (fixed ? 4 : 6), simt::load_16B(in));
}
TEST(vector_access_to_a_misaligned_address) { CHECK_BUG(vector_misaligned, "store_16B: ", "not 16-byte aligned"); }

template <bool fixed>
__global__ void copy_never_waited() {
  simt::Smem smem;
  float* tile = smem.take<float>(4 * kThreads);
  simt::cp_async_16(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);
  simt::cp_async_commit();
  if (fixed) simt::cp_async_wait<0>();
}
TEST(copy_that_is_never_waited_for) { CHECK_BUG(copy_never_waited, "never waited for", "bugs.cpp:"); }

#ifndef __SANITIZE_ADDRESS__  // below: what the compiler's hooks see

template <bool fixed>
__global__ void copy_waited_one_group_too_few() {
  simt::Smem smem;
  float* tiles = smem.take<float>(4 * kThreads);
  const int i = threadIdx.x;
  if (i < 32) {
    for (int stage = 0; stage < 2; ++stage) {
      simt::cp_async_16(tiles + 128 * stage + 4 * i, in + 128 * stage + 4 * i);
      simt::cp_async_commit();
    }
    simt::cp_async_wait<fixed ? 1 : 2>();
    out[i] = tiles[4 * i];
    simt::cp_async_wait<0>();
    out[32 + i] = tiles[128 + 4 * i];
  }
}
TEST(copy_waited_for_one_group_too_few) {
  CHECK_BUG(copy_waited_one_group_too_few, "reads 4 bytes at byte ", "of shared array of float", "under way",
            "bugs.cpp:");
}

template <bool fixed>
__global__ void shared_past_the_end() {
  simt::Smem smem;
  float* slots = smem.take<float>(kThreads);
  int* next = smem.take<int>(kThreads);
  slots[threadIdx.x] = 1;
  next[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = slots[min(int(threadIdx.x) + 1, fixed ? kThreads - 1 : kThreads)];
}
TEST(shared_read_one_past_the_end) {
  CHECK_BUG(shared_past_the_end, "thread (63, 0, 0)",
            "out of bounds: reads 4 bytes 0 bytes past the end of shared array of float (256 bytes", "bugs.cpp:");
}

template <bool fixed>
__global__ void shared_before_the_start() {
  simt::Smem smem;
  float* slots = smem.take<float>(kThreads);
  slots[int(threadIdx.x) - (fixed ? 0 : 1)] = 1;
}
TEST(shared_write_before_the_start) {
  CHECK_BUG(shared_before_the_start, "thread (0, 0, 0)", "out of bounds: writes 4 bytes", "bugs.cpp:");
}

template <bool fixed>
__global__ void global_past_the_end() {
  out[threadIdx.x] = in[3 * kThreads + threadIdx.x + (fixed ? 0 : 1)];
}
TEST(global_read_one_past_the_end) {
  CHECK_BUG(global_past_the_end, "thread (63, 0, 0)",
            "out of bounds: reads 4 bytes 0 bytes past the end of in (1024 bytes)", "bugs.cpp:");
}

template <bool fixed>
__global__ void unregistered() {
  if (threadIdx.x == 7) (fixed ? reinterpret_cast<int*>(out) : nobody_registered_this)[1] = 1;
}
TEST(memory_that_is_no_buffer) { CHECK_BUG(unregistered, "thread (7, 0, 0)", "out of bounds: writes 4 bytes"); }

template <bool fixed>
__global__ void shared_uninitialised() {
  simt::Smem smem;
  float* slots = smem.take<float>(kThreads);
  if (fixed || threadIdx.x != 33) slots[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = slots[threadIdx.x ^ 1];
}
TEST(shared_read_of_what_nobody_wrote) {
  CHECK_BUG(shared_uninitialised, "thread (32, 0, 0)",
            "uninitialised: reads 4 bytes at byte 132 of shared array of float", "bugs.cpp:");
}

__global__ void reads_in() { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void reads_out() { out[threadIdx.x] += 1; }
TEST(global_read_of_what_nobody_wrote) {
  EXPECT(report(reads_in).empty());
  const std::vector<std::string> parts = {"uninitialised: reads 4 bytes at byte ", "of in (1024 bytes)", "bugs.cpp:"};
  test::expect_report(report(reads_in, 0, Contents::uninitialised), parts, __LINE__);
  test::expect_report(report(reads_out), {"uninitialised: ", "of out"}, __LINE__);
}

template <bool fixed>
__global__ void misaligned() {
  const char* bytes = reinterpret_cast<const char*>(in);
  out[threadIdx.x] = *reinterpret_cast<const float*>(bytes + (fixed ? 4 : 2) * threadIdx.x);
}
TEST(plain_access_to_a_misaligned_address) { CHECK_BUG(misaligned, "misaligned: an access of 4 bytes", "bugs.cpp:"); }

constexpr float kTable[] = {1, 2, 4, 8};
__global__ void constants() { out[threadIdx.x] = kTable[threadIdx.x % 4]; }
TEST(tables_of_constants_may_be_read) { EXPECT(report(constants).empty()); }

TEST(bytes_of_global_memory_are_counted) {
  simt::take_counts();
  EXPECT(report(constants).empty());
  EXPECT(report(reads_in).empty());
  const auto counts = simt::take_counts();
  EXPECT(counts.size() == 2);
  EXPECT(counts[0].kernel == "planted" && counts[0].read == 0 && counts[0].written == 4 * kThreads);
  EXPECT(counts[1].read == 4 * kThreads && counts[1].written == 4 * kThreads && counts[1].atomic == 0);
  EXPECT(simt::take_counts().empty());
}

#endif

// --- launches
// -----------------------------------------------------------------------------------------------------------------

__global__ void nothing() {}
TEST(launches_that_a_gpu_refuses) {
  const auto launch = [](dim3 grid, dim3 block, size_t shared) {
    return test::report_of([&] { simt::launch("big", nothing, grid, block, shared, nullptr); });
  };
  EXPECT(launch(1, 1024, 232448).empty());
  test::expect_report(launch(1, 1025, 0), {"kernel big: launched with blocks of (1025, 1, 1) threads"}, __LINE__);
  test::expect_report(launch(1, 0, 0), {"kernel big: launched with blocks of (0, 1, 1) threads"}, __LINE__);
  test::expect_report(launch(dim3(1, 65536), 1, 0), {"kernel big: launched with a grid of (1, 65536, 1)"}, __LINE__);
  test::expect_report(launch(1, 1, 232449), {"kernel big: launched with 232449 bytes of shared memory"}, __LINE__);
}

TEST(a_launch_after_a_report_starts_afresh) {
  EXPECT(!report(missing_at_barrier<false>).empty());
  EXPECT(report(missing_at_barrier<true>).empty());
  EXPECT(!report(copy_never_waited<false>).empty());
  EXPECT(report(copy_never_waited<true>).empty());
}

}  // namespace
