// scan_histogram, scan_between, scan_pairs: the launchers.
#include "kernels/scan_pairs.cuh"

namespace graceful_fast {
void launch_scan_lines(const HistogramParams& p, void* stream) {
  simt::launch("scan_lines", scan_lines, dim3(blocks(p.pairs.queries, kRowThreads)), dim3(kRowThreads), 0, stream, p);
}

void launch_scan_histogram(const TileParams& p, const HistogramParams& ending, void* stream) {
  launch_tile("scan_histogram", p, Histogram{ending}, stream);
}

void launch_scan_between_limits(const BetweenParams& p, void* stream) {
  simt::launch("scan_between_limits", scan_between_limits, dim3(blocks(p.pairs.queries, kRowThreads)),
               dim3(kRowThreads), 0, stream, p);
}

void launch_scan_between(const TileParams& p, const BetweenParams& ending, void* stream) {
  launch_tile("scan_between", p, Between{ending}, stream);
}

void launch_scan_between_unsure(const DefinitionParams& d, const BetweenParams& p, int64_t pairs, void* stream) {
  simt::launch("scan_between_unsure", scan_between_unsure, dim3(blocks(pairs, kRowThreads / kLanes)), dim3(kRowThreads),
               0, stream, d, p, pairs);
}

void launch_scan_pair_keys(const PairKeysParams& p, void* stream) {
  simt::launch("scan_pair_keys", scan_pair_keys, dim3(blocks(p.count, kRowThreads / kLanes)), dim3(kRowThreads), 0,
               stream, p);
}

}  // namespace graceful_fast
