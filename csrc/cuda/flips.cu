// flips: the launcher.
#include "kernels/flips.cuh"

namespace graceful_fast {

void launch_flips(const FlipsParams& p, void* stream) {
  constexpr int64_t kLong = 4096;  // scores: 128 a lane
  const bool whole_block = p.scores.columns > kLong;
  const int64_t rows_a_block = whole_block ? 1 : kFlipsThreads / kWarp;
  const dim3 grid(unsigned((p.scores.rows + rows_a_block - 1) / rows_a_block));
  const size_t shared = simt::SmemBytes().take<int64_t>(kFlipsThreads / kWarp).bytes;
  with_type(p.scores.type, [&](auto t) {
    simt::launch("flips", flips<decltype(t)>, grid, dim3(kFlipsThreads), shared, stream, p, whole_block);
  });
}

}  // namespace graceful_fast
