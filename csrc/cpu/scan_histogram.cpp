// scan_histogram, scan_between, scan_pairs: torch tensors -> Params -> kernels.
#include "cpu/scan_histogram.h"

#include <atomic>

#include "cpu/scan_bind.h"

namespace graceful_fast {
namespace {

constexpr int64_t kQueriesATask = 4096, kRowsATask = 8192;  // many tasks even out: of one set, half the pairs are none

// The sides of all pairs, copies of their labels and ids with room for a vector behind, and what comes out.
struct AllPairs {
  std::vector<int32_t> labels[2], ids[2];
  Tensor counts, kinds, kept, status = new_status();

  static std::vector<int32_t> padded(const Tensor& values, const char* name, int64_t count) {
    GF_CHECK(values.dim() == 1 && values.size(0) == count && values.scalar_type() == ScalarType::Int &&
                 values.is_contiguous(),
             "scan", name, ": expected a contiguous int32 vector of ", count);
    std::vector<int32_t> copy(pointer<int32_t>(values), pointer<int32_t>(values) + count);
    copy.resize(count + kPadding);
    return copy;
  }

  AllPairs(PairParams& params, const Tensor& a, const Tensor& b, int64_t metric, const Tensor& a_labels,
           const Tensor& b_labels, const std::optional<Tensor>& a_ids, const std::optional<Tensor>& b_ids, bool within,
           int64_t bins, int64_t capacity)
      : counts(empty({2, bins}, ScalarType::Long)),
        kinds(empty({capacity}, ScalarType::Byte)),
        kept(empty({1}, ScalarType::Long)) {
    params.gallery = matrix(b, "scan", "b");
    use_queries(params, GF_CHOOSE_TABLE(scan), a, metric);
    const int64_t q = params.queries.rows, n = params.gallery.rows;
    GF_CHECK(bins >= 4 && bins <= int64_t(1) << 20 && capacity >= 0, "scan", "bins: expected 4 to 2^20, got ", bins);
    GF_CHECK(bool(a_ids) == bool(b_ids), "scan", "expected ids of both sides or of none");
    labels[0] = padded(a_labels, "a_labels", q);
    labels[1] = padded(b_labels, "b_labels", n);
    params.query_labels = labels[0].data();
    params.row_labels = labels[1].data();
    if (a_ids) {
      ids[0] = padded(*a_ids, "a_ids", q);
      ids[1] = padded(*b_ids, "b_ids", n);
      params.query_ids = ids[0].data();
      params.row_ids = ids[1].data();
    }
    params.within = within;
    params.bins = bins;
    params.counts = mutable_pointer<int64_t>(counts);
    params.kinds = mutable_pointer<uint8_t>(kinds);
    params.capacity = capacity;
    params.kept = mutable_pointer<int64_t>(kept);
    std::fill_n(params.counts, 2 * bins, 0);
    *params.kept = 0;
    params.query_parts = std::max<int64_t>(1, (q + kQueriesATask - 1) / kQueriesATask);
    params.gallery_parts = std::max<int64_t>(1, (n + kRowsATask - 1) / kRowsATask);
  }

  // Runs a kernel over all tasks; each thread takes the next one.
  template <class Params>
  void run(const Params& params, void (*kernel)(const Params&, int64_t, ScanReport&)) {
    if (params.queries.rows == 0 || params.gallery.rows == 0) return;
    const int64_t tasks = params.query_parts * params.gallery_parts;
    std::vector<ScanReport> reports(tasks);
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) {
        for (int64_t task; (task = next++) < tasks;) kernel(params, task, reports[task]);
      }
    });
    write_status(reports, mutable_pointer<int64_t>(status));
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scan_histogram(
    const Tensor& a, const Tensor& b, int64_t metric, const Tensor& a_labels, const Tensor& b_labels,
    const std::optional<Tensor>& a_ids, const std::optional<Tensor>& b_ids, bool within, double origin, double width,
    int64_t bins, const Tensor& keep, int64_t capacity) {
  HistogramParams params{};
  AllPairs pairs(params, a, b, metric, a_labels, b_labels, a_ids, b_ids, within, bins, capacity);
  GF_CHECK(keep.dim() == 2 && keep.size(1) == 2 && keep.scalar_type() == ScalarType::Long && keep.is_contiguous() &&
               width > 0,
           "scan", "keep: expected contiguous int64 (ranges, 2) and a width above 0");
  params.origin = origin, params.width = width;
  params.ranges = pointer<int64_t>(keep), params.range_count = keep.size(0);
  Tensor places = empty({capacity}, ScalarType::Float), which = empty({capacity}, ScalarType::Long);
  params.places = mutable_pointer<float>(places);
  params.pairs = mutable_pointer<int64_t>(which);
  std::vector<double> margins(params.query_parts * params.gallery_parts);
  params.margins = margins.data();
  pairs.run(params, GF_CHOOSE_TABLE(scan_histogram).histogram);
  Tensor margin = empty({1}, ScalarType::Double);
  *mutable_pointer<double>(margin) = *std::max_element(margins.begin(), margins.end());
  return {pairs.counts, places, which, pairs.kinds, margin, pairs.kept, pairs.status};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> scan_between(const Tensor& a, const Tensor& b, int64_t metric,
                                                                const Tensor& a_labels, const Tensor& b_labels,
                                                                const std::optional<Tensor>& a_ids,
                                                                const std::optional<Tensor>& b_ids, bool within,
                                                                int64_t lowest, int64_t shift, int64_t bins,
                                                                int64_t capacity) {
  BetweenParams params{};
  AllPairs pairs(params, a, b, metric, a_labels, b_labels, a_ids, b_ids, within, bins, capacity);
  GF_CHECK(shift >= 0 && shift < 64, "scan", "shift: expected 0 to 63, got ", shift);
  Tensor keys = empty({capacity}, ScalarType::Double);
  params.keys = mutable_pointer<double>(keys);
  params.lowest = lowest, params.shift = shift;
  pairs.run(params, GF_CHOOSE_TABLE(scan_histogram).between);
  return {pairs.counts, keys, pairs.kinds, pairs.kept, pairs.status};
}

Tensor scan_pairs(const Tensor& a, const Tensor& b, int64_t metric, const Tensor& rows, const Tensor& columns) {
  ScanParams params{};
  params.gallery = matrix(b, "scan", "b");
  use_queries(params, GF_CHOOSE_TABLE(scan), a, metric);
  const int64_t count = rows.size(0);
  const int64_t *row = labels(rows, "rows", count), *column = labels(columns, "columns", count);
  const auto below = [count](const int64_t* values, int64_t limit) {
    return std::all_of(values, values + count, [limit](int64_t value) { return value >= 0 && value < limit; });
  };
  GF_CHECK(below(row, params.queries.rows) && below(column, params.gallery.rows), "scan",
           "rows, columns: expected rows of a and of b");
  Tensor keys = empty({count}, ScalarType::Double);
  double* const key = mutable_pointer<double>(keys);
  torch::stable::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
    GF_CHOOSE_TABLE(scan_histogram).pairs(params, row + begin, column + begin, end - begin, key + begin);
  });
  return keys;
}

STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CPU, m) {
  m.impl("scan_histogram", TORCH_BOX(&scan_histogram));
  m.impl("scan_between", TORCH_BOX(&scan_between));
  m.impl("scan_pairs", TORCH_BOX(&scan_pairs));
}

}  // namespace
}  // namespace graceful_fast
