// scan: the launchers.
#include "kernels/scan_rows.cuh"
#include "kernels/scan_settle.cuh"

namespace graceful_fast {
namespace {

constexpr size_t kSlotBytes = simt::SmemBytes().take<int32_t>(kListThreads / 32).bytes;

}  // namespace

void launch_scan_measure(const MeasureParams& p, void* stream) {
  simt::launch("scan_measure", scan_measure, dim3(blocks(p.rows.rows, kRowThreads / kLanes)), dim3(kRowThreads), 0,
               stream, p);
}

void launch_scan_encode(const EncodeParams& p, void* stream) {
  simt::launch("scan_encode", scan_encode, dim3(blocks(p.count, kRowThreads / kCodeLanes)), dim3(kRowThreads), 0,
               stream, p);
}

void launch_scan_units(const UnitsParams& p, void* stream) {
  simt::launch("scan_units", scan_units, dim3(1), dim3(32), 0, stream, p);
}

void launch_scan_query_facts(const QueryFactsParams& p, void* stream) {
  simt::launch("scan_query_facts", scan_query_facts, dim3(blocks(p.queries, kRowThreads)), dim3(kRowThreads), 0, stream,
               p);
}

void launch_scan_row_facts(const RowFactsParams& p, void* stream) {
  simt::launch("scan_row_facts", scan_row_facts, dim3(blocks(p.count, kRowThreads)), dim3(kRowThreads), 0, stream, p);
}

void launch_scan_collect(const TileParams& p, const CollectParams& ending, void* stream) {
  launch_tile("scan_collect", p, Collect{ending}, stream);
}

void launch_scan_trim(const TrimParams& p, void* stream) {
  simt::launch("scan_trim", scan_trim, dim3(unsigned(p.queries)), dim3(kListThreads), kSlotBytes, stream, p);
}

void launch_scan_limits(const LimitParams& p, void* stream) {
  simt::launch("scan_limits", scan_limits, dim3(blocks(p.queries, kListThreads)), dim3(kListThreads), 0, stream, p);
}

void launch_scan_begin(const SettleParams& p, void* stream) {
  simt::launch("scan_begin", scan_begin, dim3(blocks(p.queries, kListThreads)), dim3(kListThreads), 0, stream, p);
}

void launch_scan_settle(const SettleParams& p, void* stream) {
  simt::launch("scan_keys", scan_keys, dim3(unsigned(p.queries)), dim3(kListThreads), 0, stream, p);
  const size_t shared = simt::SmemBytes().take<Candidate>(kSharedList).bytes;
  simt::launch("scan_rank", scan_rank, dim3(unsigned(p.queries)), dim3(kListThreads), shared, stream, p);
}

void launch_scan_place(const PlaceParams& p, void* stream) {
  simt::launch("scan_place", scan_place, dim3(unsigned(p.queries)), dim3(kListThreads), 0, stream, p);
}

void launch_scan_list_rows(const ListRowsParams& p, void* stream) {
  simt::launch("scan_list_rows", scan_list_rows, dim3(unsigned(p.queries)), dim3(kListThreads), 0, stream, p);
}

}  // namespace graceful_fast
