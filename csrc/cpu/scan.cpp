// scan: torch tensors -> CollectParams -> kernels.
#include "cpu/scan.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bind.h"

namespace graceful_fast {
namespace {

constexpr int64_t kMostQueriesATask = 4096;  // bounds the candidates in memory; each block reads the gallery once
constexpr int64_t kRowsATask = 4096;         // fewer, and warming up the limits costs more than a thread brings
constexpr int64_t kQueriesATask = 128;       // fewer, and packing the gallery costs over a tenth of a task
constexpr int64_t kRoom = 32, kCodedRoom = 128;
constexpr int64_t kQueriesABlock = 16;  // settled by one thread in one go
constexpr int64_t kStatus = 7;
constexpr int64_t kMostCandidates = int64_t(16) << 20;  // of all tasks, 16 bytes each: beyond, threads share less

const int64_t* labels(const std::optional<Tensor>& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == count && tensor->scalar_type() == ScalarType::Long &&
               tensor->is_contiguous(),
           "scan", name, ": expected a contiguous int64 vector of ", count);
  return pointer<int64_t>(*tensor);
}

Codes given_codes(const std::optional<Tensor>& codes, const std::optional<Tensor>& facts, int64_t rows, int64_t dim) {
  if (!codes) return {};
  GF_CHECK(facts.has_value() && codes->dim() == 2 && codes->size(0) == rows && codes->size(1) == code_stride(dim) &&
               codes->scalar_type() == ScalarType::Char && codes->is_contiguous(),
           "scan", "codes: expected contiguous int8 (", rows, ", ", code_stride(dim), ") with facts");
  GF_CHECK(facts->dim() == 2 && facts->size(0) == rows && facts->size(1) == kFacts &&
               facts->scalar_type() == ScalarType::Float && facts->is_contiguous(),
           "scan", "facts: expected contiguous float32 (", rows, ", ", kFacts, ")");
  return {pointer<int8_t>(*codes), codes->size(1), pointer<float>(*facts)};
}

// What all endings' ops check and choose alike.
void prepare(ScanParams& params, const ScanKernels& kernels, const Tensor& queries, const Tensor& gallery,
             int64_t metric) {
  params.queries = matrix(queries, "scan", "queries");
  params.gallery = matrix(gallery, "scan", "gallery");
  params.dim = params.queries.columns;
  GF_CHECK(params.dim >= 1 && params.gallery.columns == params.dim, "scan",
           "expected (Q, dim) and (N, dim) with dim at least 1, got dims ", params.dim, " and ",
           params.gallery.columns);
  GF_CHECK(metric >= 0 && metric <= 2, "scan", "metric: expected 0 (ip), 1 (l2) or 2 (cosine), got ", metric);
  params.metric = Metric(metric);
  params.gallery_scale = kernels.typical_scale(params.gallery, params.dim);
  if (params.metric == Metric::l2) {
    params.gallery_scale = std::min(params.gallery_scale, kernels.typical_scale(params.queries, params.dim));
    params.query_scale = params.gallery_scale;
  }
}

// Threads share the gallery first, so that each row is packed once.
void divide(ScanParams& params, int64_t candidates_a_query) {
  const int64_t q = params.queries.rows, threads = torch::stable::get_num_threads();
  const int64_t rows_a_task = std::max(kRowsATask, 4 * candidates_a_query);
  params.gallery_parts = std::clamp<int64_t>(
      std::min(params.gallery.rows / rows_a_task, kMostCandidates / (q * candidates_a_query)), 1, threads);
  params.query_parts = std::max((q + kMostQueriesATask - 1) / kMostQueriesATask,
                                std::min(threads / params.gallery_parts, (q + kQueriesATask - 1) / kQueriesATask));
}

// status[0..3]: the bad argument (1 queries, 2 gallery) or 0, its first bad row, the fault, rows settled in float64;
// [4..6]: buffers cut, rows scanned as codes, rows scanned in float32 (each by every block of queries).
// The first bad query goes before the first bad gallery row, whichever task saw it.
void write_status(const std::vector<ScanReport>& reports, int64_t* status) {
  int64_t bad_query = -1, bad_row = -1;
  for (const ScanReport& report : reports) {
    status[3] += report.settled;
    status[4] += report.cuts;
    status[5] += report.coded_rows;
    status[6] += report.plain_rows;
    if (report.query >= 0 && (bad_query < 0 || report.query < bad_query)) {
      bad_query = report.query;
      status[0] = 1, status[1] = report.query, status[2] = int64_t(report.query_fault);
    }
    if (report.row >= 0 && (bad_row < 0 || report.row < bad_row)) {
      bad_row = report.row;
      if (bad_query < 0) status[0] = 2, status[1] = report.row, status[2] = int64_t(report.row_fault);
    }
  }
}

Tensor new_status() {
  Tensor status = empty({kStatus}, ScalarType::Long);
  std::fill_n(mutable_pointer<int64_t>(status), kStatus, 0);
  return status;
}

// Touches the candidates' rows in ascending order: a disk likes that better than the order of the queries.
void bring_in(const CollectParams& params) {
  std::vector<int64_t> rows;
  for (size_t list = 0; list < size_t(params.queries.rows * params.gallery_parts); ++list) {
    for (int64_t j = 0; j < params.counts[list]; ++j) rows.push_back(params.candidates[list * params.capacity + j].row);
  }
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  constexpr int64_t kPage = 4096;
  const int64_t bytes = params.dim * element_bytes(params.gallery.type);
  const auto* const gallery = static_cast<const volatile char*>(params.gallery.data);
  for (const int64_t row : rows) {
    const volatile char* const at = gallery + row * params.gallery.row_stride * element_bytes(params.gallery.type);
    for (int64_t i = 0; i < bytes; i += kPage) (void)at[i];
    (void)at[bytes - 1];
  }
}

// keys, rows: the k best so far, best first, -1 where there is none; out: with this gallery's rows. See write_status.
Tensor scan_collect(const Tensor& queries, const Tensor& gallery, const std::optional<Tensor>& codes,
                    const std::optional<Tensor>& facts, Tensor keys, Tensor rows, int64_t first_row, int64_t metric,
                    const std::optional<Tensor>& query_ids, const std::optional<Tensor>& gallery_ids,
                    const std::optional<Tensor>& query_groups, const std::optional<Tensor>& gallery_groups, bool coded,
                    bool cold) {
  const ScanKernels& kernels = GF_CHOOSE_TABLE(scan);
  CollectParams params{};
  prepare(params, kernels, queries, gallery, metric);
  const int64_t q = params.queries.rows, n = params.gallery.rows;
  GF_CHECK(keys.dim() == 2 && keys.size(0) == q && keys.size(1) >= 1 && keys.scalar_type() == ScalarType::Double &&
               keys.is_contiguous() && rows.dim() == 2 && rows.size(0) == q && rows.size(1) == keys.size(1) &&
               rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
           "scan", "keys, rows: expected contiguous float64 and int64 (", q, ", k)");
  GF_CHECK(bool(query_ids) == bool(gallery_ids) && bool(query_groups) == bool(gallery_groups), "scan",
           "expected ids and groups of both sides or of none");
  params.k = keys.size(1);
  params.first_row = first_row;
  params.query_ids = labels(query_ids, "query_ids", q);
  params.gallery_ids = labels(gallery_ids, "gallery_ids", n);
  params.query_groups = labels(query_groups, "query_groups", q);
  params.gallery_groups = labels(gallery_groups, "gallery_groups", n);
  params.codes = given_codes(codes, facts, n, params.dim);
  params.coded = (coded || params.codes.data) && params.dim <= kLargestCodedDim;
  params.keys = mutable_pointer<double>(keys);
  params.rows = mutable_pointer<int64_t>(rows);
  Tensor status = new_status();
  if (q == 0 || n == 0) return status;

  // Twice k: a staler floor lets more rows in, a fresher one costs more cuts. The rest keeps cuts rare for small k.
  params.capacity = std::min((params.coded ? 6 : 2) * params.k, n) + (params.coded ? kCodedRoom : kRoom);
  divide(params, params.capacity);
  std::vector<double> floor(q, -std::numeric_limits<double>::infinity());
  const auto candidates = std::make_unique_for_overwrite<Candidate[]>(q * params.gallery_parts * params.capacity);
  std::vector<int64_t> counts(q * params.gallery_parts);
  params.floor = floor.data();
  params.candidates = candidates.get();
  params.counts = counts.data();
  const int64_t tasks = params.query_parts * params.gallery_parts;
  const int64_t blocks = (q + kQueriesABlock - 1) / kQueriesABlock;
  std::vector<ScanReport> reports(tasks + blocks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels.collect(params, task, reports[task]);
  });
  int64_t* const state = mutable_pointer<int64_t>(status);
  write_status(reports, state);
  if (state[0]) return status;
  torch::stable::parallel_for(0, q, kQueriesABlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.trim(params, i);
  });
  if (cold) bring_in(params);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.settle(params, i * kQueriesABlock, std::min(q, (i + 1) * kQueriesABlock), reports[tasks + i]);
    }
  });
  std::fill_n(state, kStatus, 0);
  write_status(reports, state);
  return status;
}

// Codes of 8 bits of each row: (codes (N, stride), facts (N, 3): scale, residual, norm; status: first bad row or -1,
// the fault).
std::tuple<Tensor, Tensor, Tensor> scan_quantize(const Tensor& rows) {
  const Matrix from = matrix(rows, "scan", "rows");
  GF_CHECK(from.columns >= 1 && from.columns <= kLargestCodedDim, "scan", "rows: expected a dim of 1 to ",
           kLargestCodedDim, ", got ", from.columns);
  Tensor codes = empty({from.rows, code_stride(from.columns)}, ScalarType::Char);
  Tensor facts = empty({from.rows, kFacts}, ScalarType::Float);
  Tensor status = empty({2}, ScalarType::Long);
  int64_t* const state = mutable_pointer<int64_t>(status);
  state[0] = -1, state[1] = 0;
  const ScanKernels& kernels = GF_CHOOSE_TABLE(scan);
  constexpr int64_t kGrain = 1024;
  std::vector<std::pair<int64_t, Fault>> bad((from.rows + kGrain - 1) / kGrain, {-1, Fault::none});
  int8_t* const code = mutable_pointer<int8_t>(codes);
  float* const fact = mutable_pointer<float>(facts);
  torch::stable::parallel_for(0, int64_t(bad.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      bad[i].first =
          kernels.quantize(from, i * kGrain, std::min(from.rows, (i + 1) * kGrain), code, fact, bad[i].second);
    }
  });
  for (const auto& [row, fault] : bad) {
    if (row >= 0 && state[0] < 0) state[0] = row, state[1] = int64_t(fault);
  }
  return {codes, facts, status};
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) {
  m.impl("scan_collect", TORCH_BOX(&scan_collect));
  m.impl("scan_quantize", TORCH_BOX(&scan_quantize));
}

}  // namespace
}  // namespace graceful_fast
