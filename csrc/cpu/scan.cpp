// scan: torch tensors -> CollectParams -> kernels.
#include "cpu/scan.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/scan_bind.h"

namespace graceful_fast {
namespace {

constexpr int64_t kMostQueriesATask = 4096;  // bounds the candidates in memory; each block reads the gallery once
constexpr int64_t kRowsATask = 4096;         // fewer, and warming up the limits costs more than a thread brings
constexpr int64_t kQueriesATask = 128;       // fewer, and packing the gallery costs over a tenth of a task
constexpr int64_t kMostCandidates = int64_t(16) << 20;  // of all tasks, 16 bytes each: beyond, threads share less

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

// Threads share the gallery first, so that each row is packed once.
void divide(ScanParams& params, int64_t candidates_a_query) {
  const int64_t q = params.queries.rows, threads = torch::stable::get_num_threads();
  const int64_t rows_a_task = std::max(kRowsATask, 4 * candidates_a_query);
  params.gallery_parts = std::clamp<int64_t>(
      std::min(params.gallery.rows / rows_a_task, kMostCandidates / (q * candidates_a_query)), 1, threads);
  params.query_parts = std::max((q + kMostQueriesATask - 1) / kMostQueriesATask,
                                std::min(threads / params.gallery_parts, (q + kQueriesATask - 1) / kQueriesATask));
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
  params.cold = cold;
  Tensor status = new_status();
  if (q == 0 || n == 0) return status;

  const int64_t k = params.k;
  divide(params, std::min(2 * k, n) + 128);
  std::vector<double> floor(q, -std::numeric_limits<double>::infinity());
  std::vector<double> part_keys(q * params.gallery_parts * k);
  std::vector<int64_t> part_rows(q * params.gallery_parts * k);
  double* const key = mutable_pointer<double>(keys);
  int64_t* const row = mutable_pointer<int64_t>(rows);
  const std::vector<double> best_keys(key, key + q * k);
  const std::vector<int64_t> best_rows(row, row + q * k);
  params.floor = floor.data();
  params.best_keys = best_keys.data();
  params.best_rows = best_rows.data();
  params.keys = part_keys.data();
  params.rows = part_rows.data();
  const int64_t tasks = params.query_parts * params.gallery_parts;
  std::vector<ScanReport> reports(tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels.collect(params, task, reports[task]);
  });
  int64_t* const state = mutable_pointer<int64_t>(status);
  write_status(reports, state);
  if (state[0]) return status;
  torch::stable::parallel_for(0, q, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.merge(params, i, key + i * k, row + i * k);
  });
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
      bad[i].first = kernels.quantize(from, i * kGrain, std::min(from.rows, (i + 1) * kGrain), code, fact, bad[i].second);
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
