// scan_count: torch tensors -> CountParams -> kernels.
#include "cpu/scan_count.h"

#include "cpu/scan_bind.h"

namespace graceful_fast {
namespace {

constexpr int64_t kMostQueriesATask = 4096;
constexpr int64_t kRowsATask = 4096;

const int64_t* rows_of(const Tensor& start, const Tensor& rows, const char* name, int64_t queries, int64_t gallery) {
  labels(start, name, queries + 1);
  labels(rows, name, rows.size(0));
  const int64_t *first = pointer<int64_t>(start), *row = pointer<int64_t>(rows);
  GF_CHECK(first[0] == 0 && first[queries] == rows.size(0) && std::is_sorted(first, first + queries + 1), "scan", name,
           ": expected starts that ascend from 0 to ", rows.size(0));
  GF_CHECK(std::all_of(row, row + rows.size(0), [&](int64_t r) { return r >= 0 && r < gallery; }), "scan", name,
           ": expected rows below ", gallery);
  return row;
}

// counts (3, P): see CountParams; status: see write_status.
std::tuple<Tensor, Tensor> scan_count(const Tensor& queries, const Tensor& gallery, int64_t metric,
                                      const Tensor& positive_start, const Tensor& positives,
                                      const Tensor& excluded_start, const Tensor& excluded) {
  const CountKernels& kernels = GF_CHOOSE_TABLE(scan_count);
  CountParams params{};
  params.gallery = matrix(gallery, "scan", "gallery");
  use_queries(params, GF_CHOOSE_TABLE(scan), queries, metric);
  const int64_t q = params.queries.rows, n = params.gallery.rows, p = positives.size(0);
  params.start = pointer<int64_t>(positive_start);
  params.positives = rows_of(positive_start, positives, "positives", q, n);
  params.excluded_start = pointer<int64_t>(excluded_start);
  params.excluded = rows_of(excluded_start, excluded, "excluded", q, n);
  Tensor counts = empty({3, p}, ScalarType::Long), status = new_status();
  if (q == 0 || n == 0) return {counts, status};

  const int64_t threads = torch::stable::get_num_threads();
  params.gallery_parts = std::clamp<int64_t>(n / kRowsATask, 1, threads);
  params.query_parts = std::max((q + kMostQueriesATask - 1) / kMostQueriesATask, threads / params.gallery_parts);
  std::vector<double> keys(p);
  std::vector<int64_t> rows(p), places(p), tallies(params.gallery_parts * (3 * p + q));
  params.keys = keys.data();
  params.rows = rows.data();
  params.places = places.data();
  params.tallies = tallies.data();
  params.counts = mutable_pointer<int64_t>(counts);
  const auto over_queries = [&](auto kernel) {
    torch::stable::parallel_for(0, q, 16, [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
  };
  over_queries(kernels.sort);
  const int64_t tasks = params.query_parts * params.gallery_parts;
  std::vector<ScanReport> reports(tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels.count(params, task, reports[task]);
  });
  write_status(reports, mutable_pointer<int64_t>(status));
  over_queries(kernels.finish);
  return {counts, status};
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) { m.impl("scan_count", TORCH_BOX(&scan_count)); }

}  // namespace
}  // namespace graceful_fast
