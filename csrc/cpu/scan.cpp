// scan: torch tensors -> CollectParams -> kernels.
#include "cpu/scan.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bind.h"

namespace graceful_fast {
namespace {

constexpr int64_t kQueriesATask = 128;       // fewer, and packing the gallery costs over a tenth of a task
constexpr int64_t kMostQueriesATask = 4096;  // bounds the candidates in memory; each block reads the gallery once
constexpr int64_t kRowsATask = 4096;         // fewer, and warming up the thresholds costs more than a thread brings

const int64_t* labels(const std::optional<Tensor>& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == count && tensor->scalar_type() == ScalarType::Long &&
               tensor->is_contiguous(),
           "scan", name, ": expected a contiguous int64 vector of ", count);
  return pointer<int64_t>(*tensor);
}

// (scores, indices, status: [bad argument (1 queries, 2 gallery) or 0, its first bad row, fault, rows settled in
// float64])
std::tuple<Tensor, Tensor, Tensor> scan_collect(const Tensor& queries, const Tensor& gallery, int64_t k, int64_t metric,
                                                const std::optional<Tensor>& query_ids,
                                                const std::optional<Tensor>& gallery_ids,
                                                const std::optional<Tensor>& query_groups,
                                                const std::optional<Tensor>& gallery_groups) {
  CollectParams params{};
  params.queries = matrix(queries, "scan", "queries");
  params.gallery = matrix(gallery, "scan", "gallery");
  params.dim = params.queries.columns;
  params.k = k;
  const int64_t q = params.queries.rows, n = params.gallery.rows;
  GF_CHECK(params.dim >= 1 && params.gallery.columns == params.dim, "scan",
           "expected (Q, dim) and (N, dim) with dim at least 1, got dims ", params.dim, " and ",
           params.gallery.columns);
  GF_CHECK(k >= 1 && k <= n, "scan", "k: expected 1 to ", n, ", got ", k);
  GF_CHECK(metric >= 0 && metric <= 2, "scan", "metric: expected 0 (ip), 1 (l2) or 2 (cosine), got ", metric);
  GF_CHECK(bool(query_ids) == bool(gallery_ids) && bool(query_groups) == bool(gallery_groups), "scan",
           "expected ids and groups of both sides or of none");
  params.metric = Metric(metric);
  params.query_ids = labels(query_ids, "query_ids", q);
  params.gallery_ids = labels(gallery_ids, "gallery_ids", n);
  params.query_groups = labels(query_groups, "query_groups", q);
  params.gallery_groups = labels(gallery_groups, "gallery_groups", n);

  Tensor scores = empty({q, k}, ScalarType::Float);
  Tensor indices = empty({q, k}, ScalarType::Long);
  Tensor status = empty({4}, ScalarType::Long);
  int64_t* state = mutable_pointer<int64_t>(status);
  std::fill(state, state + 4, 0);
  if (q == 0) return {scores, indices, status};

  const ScanKernels& kernels = GF_CHOOSE_TABLE(scan);
  const int64_t threads = torch::stable::get_num_threads();
  params.query_parts = std::max((q + kMostQueriesATask - 1) / kMostQueriesATask,
                                std::min(threads, (q + kQueriesATask - 1) / kQueriesATask));
  const int64_t most_ranges = std::max<int64_t>(1, n / std::max(kRowsATask, 8 * k));
  params.gallery_parts = std::min((threads + params.query_parts - 1) / params.query_parts, most_ranges);
  params.gallery_scale = kernels.typical_scale(params.gallery, params.dim);
  if (params.metric == Metric::l2) {
    params.gallery_scale = std::min(params.gallery_scale, kernels.typical_scale(params.queries, params.dim));
    params.query_scale = params.gallery_scale;
  }
  std::vector<double> floor(q, -std::numeric_limits<double>::infinity());
  std::vector<double> keys(q * params.gallery_parts * k);
  std::vector<int64_t> found(q * params.gallery_parts * k);
  params.floor = floor.data();
  params.keys = keys.data();
  params.rows = found.data();
  const int64_t tasks = params.query_parts * params.gallery_parts;
  std::vector<CollectReport> reports(tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels.collect(params, task, reports[task]);
  });

  // The first bad query before the first bad gallery row, whichever task saw it.
  int64_t bad_query = q, bad_row = n;
  for (const CollectReport& report : reports) {
    state[3] += report.settled;
    if (report.query >= 0 && report.query < bad_query) {
      bad_query = report.query;
      state[0] = 1, state[1] = report.query, state[2] = int64_t(report.query_fault);
    }
    if (report.row >= 0 && report.row < bad_row) {
      bad_row = report.row;
      if (bad_query == q) state[0] = 2, state[1] = report.row, state[2] = int64_t(report.row_fault);
    }
  }
  if (state[0]) return {scores, indices, status};
  float* best = mutable_pointer<float>(scores);
  int64_t* index = mutable_pointer<int64_t>(indices);
  torch::stable::parallel_for(0, q, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.merge(params, i, best + i * k, index + i * k);
  });
  return {scores, indices, status};
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) { m.impl("scan_collect", TORCH_BOX(&scan_collect)); }

}  // namespace
}  // namespace graceful_fast
