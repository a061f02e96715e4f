// scan_count: the launchers.
#include "kernels/scan_count.cuh"

namespace graceful_fast {
void launch_scan_edges(const CountAllParams& p, void* stream) {
  simt::launch("scan_edges", scan_edges, dim3(unsigned(p.queries)), dim3(kCountThreads), 0, stream, p);
}

void launch_scan_count(const TileParams& p, const CountParams& ending, void* stream) {
  launch_tile("scan_count", p, Count{ending}, stream);
}

void launch_scan_count_unsure(const DefinitionParams& d, const CountParams& p, int64_t pairs, void* stream) {
  simt::launch("scan_count_unsure", scan_count_unsure, dim3(blocks(pairs, kRowThreads / kLanes)), dim3(kRowThreads), 0,
               stream, d, p, pairs);
}

void launch_scan_count_add(const CountAllParams& p, void* stream) {
  simt::launch("scan_count_add", scan_count_add, dim3(blocks(p.queries, kCountThreads)), dim3(kCountThreads), 0, stream,
               p);
}

}  // namespace graceful_fast
