// scan_count: torch tensors -> CountParams -> kernels.
#include "cuda/scan_sides.h"

namespace graceful_fast {
namespace {

// counts (3, P): greater keys; equal ones, its own included; equal ones at a smaller row.
Tensor scan_count(const Tensor& queries, const Tensor& gallery, int64_t first_row, int64_t metric, const Tensor& start,
                  const Tensor& keys, const Tensor& rows, Tensor counts) {
  const Op op("scan_count", queries);
  Scratch scratch(op);
  Sides sides(scratch, op.rows(queries, "queries"), op.rows(gallery, "gallery"), metric, Coding::float16);
  const int64_t q = sides.queries.rows, n = sides.gallery.rows, p = rows.size(0);
  CountAllParams all{};
  CountParams& count = all.count;
  count.start = labels(op, start, "start", q + 1);
  count.rows = labels(op, rows, "rows", p);
  const std::vector<int64_t> starts = on_host(start);
  GF_CHECK(starts[0] == 0 && starts[q] == p && std::is_sorted(starts.begin(), starts.end()), "scan",
           "start: expected starts that ascend from 0 to ", p);
  GF_CHECK(keys.dim() == 1 && keys.size(0) == p && keys.scalar_type() == ScalarType::Double && keys.is_contiguous(),
           "scan", "keys: expected a contiguous float64 vector of ", p);
  GF_CHECK(counts.dim() == 2 && counts.size(0) == 3 && counts.size(1) == p &&
               counts.scalar_type() == ScalarType::Long && counts.is_contiguous(),
           "scan", "counts: expected contiguous int64 (3, ", p, ")");
  count.keys = op.input<double>(keys, "keys");
  all.counts = op.update<int64_t>(counts, "counts");
  Status status(kStatus, 0);
  if (q == 0 || n == 0 || !sides.measure(status)) return on_device(op, status);
  sides.encode_queries();
  count.upper = scratch.take<float>(p, "upper edges");
  count.lower = scratch.take<float>(p, "lower edges");
  count.between = scratch.filled<unsigned long long>(p + q, 0, "between");
  count.equal = scratch.filled<unsigned long long>(p, 0, "equal");
  count.before = scratch.filled<unsigned long long>(p, 0, "before");
  count.first_row = first_row;
  all.queries = q, all.positives = p, all.facts = sides.facts_of_queries, all.metric = sides.metric;
  launch_scan_edges(all, op.stream());
  const UnsurePairs unsure(scratch, sides);
  for (int64_t row = 0; row < n; row += sides.chunk) {
    const Range range = sides.encode(row, 1, std::min(sides.chunk, n - row));
    for (int64_t q0 = 0; q0 < q; q0 += UnsurePairs::kMostQueries) {
      const int64_t q1 = std::min(q, q0 + UnsurePairs::kMostQueries);
      status[3] += unsure.run(
          range, q1 - q0,
          [&](const Range& part, const Unsure& list) {
            count.first_query = q0, count.first = part.first, count.unsure = list;
            launch_scan_count(sides.tile(q0, q1, part), count, op.stream());
          },
          [&](int64_t pairs) { launch_scan_count_unsure(sides.definition, count, pairs, op.stream()); });
    }
  }
  launch_scan_count_add(all, op.stream());
  status[6] = n;
  return on_device(op, status);
}

GF_DEVICE_LIBRARY_IMPL(m) { m.impl("scan_count", TORCH_BOX(&scan_count)); }

}  // namespace
}  // namespace graceful_fast
