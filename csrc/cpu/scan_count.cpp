// scan_count: torch tensors -> CountParams -> kernels.
#include "cpu/scan_count.h"

#include "cpu/scan_bind.h"
#include "cpu/scan_tally.h"

namespace graceful_fast {
namespace {

constexpr int64_t kMostQueriesATask = 4096;
constexpr int64_t kRowsATask = 4096;

// The tallies of query i, of all parts -> counts.
void add_counts(const CountParams& p, int64_t i, int64_t* counts) {
  const int64_t at = p.start[i], count = p.start[i + 1] - at, positives = p.start[p.queries.rows];
  const double* const keys = p.keys + at;
  int64_t greater = 0, equal = 0, before = 0;  // of the positives of one key
  for (int64_t j = 0; j < count; ++j) {
    Tally::Place here = Tally(p, i, 0).at(j);
    for (int64_t part = 1; part < p.gallery_parts; ++part) here += Tally(p, i, part).at(j);
    if (j == 0 || keys[j] != keys[j - 1]) {
      greater += equal + here.between;
      equal = here.equal;
      before = 0;
    }
    before += here.before;
    int64_t* const out = counts + at + j;
    out[0] += greater;
    out[positives] += equal;
    out[2 * positives] += before;
  }
}

// counts (3, P): greater keys; equal ones, its own included; equal ones at a smaller row. status: see write_status.
Tensor scan_count(const Tensor& queries, const Tensor& gallery, int64_t first_row, int64_t metric, const Tensor& start,
                  const Tensor& keys, const Tensor& rows, Tensor counts) {
  const CountKernels& kernels = GF_CHOOSE_TABLE(scan_count);
  CountParams params{};
  params.gallery = matrix(gallery, "scan", "gallery");
  use_queries(params, GF_CHOOSE_TABLE(scan), queries, metric);
  const int64_t q = params.queries.rows, n = params.gallery.rows, p = rows.size(0);
  params.first_row = first_row;
  params.start = labels(start, "start", q + 1);
  params.rows = labels(rows, "rows", p);
  GF_CHECK(params.start[0] == 0 && params.start[q] == p && std::is_sorted(params.start, params.start + q + 1), "scan",
           "start: expected starts that ascend from 0 to ", p);
  GF_CHECK(keys.dim() == 1 && keys.size(0) == p && keys.scalar_type() == ScalarType::Double && keys.is_contiguous(),
           "scan", "keys: expected a contiguous float64 vector of ", p);
  params.keys = pointer<double>(keys);
  GF_CHECK(counts.dim() == 2 && counts.size(0) == 3 && counts.size(1) == p &&
               counts.scalar_type() == ScalarType::Long && counts.is_contiguous(),
           "scan", "counts: expected contiguous int64 (3, ", p, ")");
  Tensor status = new_status();
  if (q == 0 || n == 0) return status;

  const int64_t threads = torch::stable::get_num_threads();
  params.gallery_parts = std::clamp<int64_t>(n / kRowsATask, 1, threads);
  params.query_parts = std::max((q + kMostQueriesATask - 1) / kMostQueriesATask, threads / params.gallery_parts);
  std::vector<int64_t> tallies(params.gallery_parts * (3 * p + q));
  params.tallies = tallies.data();
  const int64_t tasks = params.query_parts * params.gallery_parts;
  std::vector<ScanReport> reports(tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels.count(params, task, reports[task]);
  });
  int64_t* const state = mutable_pointer<int64_t>(status);
  write_status(reports, state);
  if (state[0]) return status;
  torch::stable::parallel_for(0, q, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) add_counts(params, i, mutable_pointer<int64_t>(counts));
  });
  return status;
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) { m.impl("scan_count", TORCH_BOX(&scan_count)); }

}  // namespace
}  // namespace graceful_fast
