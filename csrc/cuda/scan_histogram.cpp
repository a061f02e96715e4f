// scan_histogram, scan_between, scan_pairs: torch tensors -> Params -> kernels.
#include <tuple>

#include "cuda/scan_sides.h"

namespace graceful_fast {
namespace {

const int32_t* labels32(const Op& op, const Given& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == count && tensor->scalar_type() == ScalarType::Int &&
               tensor->is_contiguous(),
           "scan", name, ": expected a contiguous int32 vector of ", count);
  return op.input<int32_t>(*tensor, name);
}

// Both sides of all pairs, and what comes out.
struct AllPairs {
  const Op op;
  Scratch scratch{op};
  Sides sides;
  Tensor counts, kinds, kept;
  Status status = Status(kStatus, 0);
  PairParams params{};

  AllPairs(const char* name, const Tensor& a, const Tensor& b, int64_t metric, const Tensor& a_labels,
           const Tensor& b_labels, const Given& a_ids, const Given& b_ids, bool within, int64_t bins, int64_t capacity)
      : op(name, a),
        sides(scratch, op.rows(a, "a"), op.rows(b, "b"), metric, Coding::float16),
        counts(op.empty({2, bins}, ScalarType::Long)),
        kinds(op.empty({capacity}, ScalarType::Byte)),
        kept(op.empty({1}, ScalarType::Long)) {
    const int64_t q = sides.queries.rows, n = sides.gallery.rows;
    GF_CHECK(bins >= 4 && bins <= int64_t(1) << 20 && capacity >= 0, "scan", "bins: expected 4 to 2^20, got ", bins);
    GF_CHECK(bool(a_ids) == bool(b_ids), "scan", "expected ids of both sides or of none");
    torch::stable::fill_(counts, 0);
    torch::stable::fill_(kept, 0);
    params.query_labels = labels32(op, a_labels, "a_labels", q);
    params.row_labels = labels32(op, b_labels, "b_labels", n);
    params.query_ids = labels32(op, a_ids, "a_ids", q);
    params.row_ids = labels32(op, b_ids, "b_ids", n);
    params.within = within;
    params.queries = q;
    params.bins = bins;
    params.counts = op.update<unsigned long long>(counts, "counts");
    params.kinds = op.output<uint8_t>(kinds, "kinds");
    params.capacity = capacity;
    params.kept = op.update<unsigned long long>(kept, "kept");
  }

  // False where there is nothing to scan, for want of rows or as a row is bad.
  bool begin() {
    if (sides.queries.rows == 0 || sides.gallery.rows == 0 || !sides.measure(status)) return false;
    sides.encode_queries();
    status[6] = sides.gallery.rows;
    return true;
  }

  // Rows by chunks: scan(range).
  template <class Scan>
  void each_chunk(Scan scan) {
    for (int64_t row = 0; row < sides.gallery.rows; row += sides.chunk) {
      scan(sides.encode(row, 1, std::min(sides.chunk, sides.gallery.rows - row)));
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scan_histogram(
    const Tensor& a, const Tensor& b, int64_t metric, const Tensor& a_labels, const Tensor& b_labels,
    const Given& a_ids, const Given& b_ids, bool within, double origin, double width, int64_t bins, const Tensor& keep,
    int64_t capacity) {
  AllPairs all("scan_histogram", a, b, metric, a_labels, b_labels, a_ids, b_ids, within, bins, capacity);
  GF_CHECK(keep.dim() == 2 && keep.size(1) == 2 && keep.scalar_type() == ScalarType::Long && keep.is_contiguous() &&
               width > 0,
           "scan", "keep: expected contiguous int64 (ranges, 2) and a width above 0");
  const Op& op = all.op;
  Tensor places = op.empty({capacity}, ScalarType::Float), numbers = op.empty({capacity}, ScalarType::Long);
  Tensor margin = op.empty({1}, ScalarType::Double);
  double most = 0;
  if (all.begin()) {
    const Counters<uint32_t> margins(all.scratch, 1, 0, "margin");
    HistogramParams params{all.params,
                           all.sides.gallery.rows,
                           all.sides.metric,
                           origin,
                           width,
                           all.sides.facts_of_queries,
                           all.scratch.take<Line>(all.sides.queries.rows, "lines"),
                           op.output<float>(places, "places"),
                           op.output<int64_t>(numbers, "pairs"),
                           op.input<int64_t>(keep, "keep"),
                           keep.size(0),
                           margins.data()};
    launch_scan_lines(params, op.stream());
    all.each_chunk([&](const Range& range) {
      params.pairs.first = range.first;
      launch_scan_histogram(all.sides.tile(0, all.sides.queries.rows, range), params, op.stream());
    });
    most = double(from_bits(margins.read()[0])) * (1 + 0x1p-20);
  }
  torch::stable::fill_(margin, most);
  return {all.counts, places, numbers, all.kinds, margin, all.kept, on_device(op, all.status)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> scan_between(const Tensor& a, const Tensor& b, int64_t metric,
                                                                const Tensor& a_labels, const Tensor& b_labels,
                                                                const Given& a_ids, const Given& b_ids, bool within,
                                                                int64_t lowest, int64_t shift, int64_t bins,
                                                                int64_t capacity) {
  AllPairs all("scan_between", a, b, metric, a_labels, b_labels, a_ids, b_ids, within, bins, capacity);
  GF_CHECK(shift >= 0 && shift < 64, "scan", "shift: expected 0 to 63, got ", shift);
  const Op& op = all.op;
  const int64_t q = all.sides.queries.rows;
  Tensor keys = op.empty({capacity}, ScalarType::Double);
  if (all.begin()) {
    BetweenParams params{all.params,
                         all.sides.metric,
                         all.sides.facts_of_queries,
                         all.scratch.take<Limits>(q, "limits"),
                         op.output<double>(keys, "keys"),
                         lowest,
                         shift,
                         {}};
    launch_scan_between_limits(params, op.stream());
    const UnsurePairs unsure(all.scratch, all.sides);
    all.each_chunk([&](const Range& range) {
      for (int64_t q0 = 0; q0 < q; q0 += UnsurePairs::kMostQueries) {
        const int64_t q1 = std::min(q, q0 + UnsurePairs::kMostQueries);
        all.status[3] += unsure.run(
            range, q1 - q0,
            [&](const Range& part, const Unsure& list) {
              params.pairs.first_query = q0, params.pairs.first = part.first, params.unsure = list;
              launch_scan_between(all.sides.tile(q0, q1, part), params, op.stream());
            },
            [&](int64_t pairs) { launch_scan_between_unsure(all.sides.definition, params, pairs, op.stream()); });
      }
    });
  }
  return {all.counts, keys, all.kinds, all.kept, on_device(op, all.status)};
}

Tensor scan_pairs(const Tensor& a, const Tensor& b, int64_t metric, const Tensor& rows, const Tensor& columns) {
  const Op op("scan_pairs", a);
  Scratch scratch(op);
  Sides sides(scratch, op.rows(a, "a"), op.rows(b, "b"), metric, Coding::float16);
  const int64_t count = rows.size(0);
  const int64_t *row = labels(op, rows, "rows", count), *column = labels(op, columns, "columns", count);
  Tensor keys = op.empty({count}, ScalarType::Double);
  if (count == 0) return keys;
  GF_CHECK(sides.queries.rows > 0 && sides.gallery.rows > 0, "scan", "rows, columns: expected rows of a and of b");
  const Counters<unsigned long long> fault(scratch, 1, 255, "fault");
  launch_scan_pair_keys(
      {sides.define_queries(), sides.queries.rows, count, row, column, op.output<double>(keys, "keys"), fault.data()},
      op.stream());
  GF_CHECK(fault.read()[0] == ~0ull, "scan", "rows, columns: expected rows of a and of b");
  return keys;
}

GF_DEVICE_LIBRARY_IMPL(m) {
  m.impl("scan_histogram", TORCH_BOX(&scan_histogram));
  m.impl("scan_between", TORCH_BOX(&scan_between));
  m.impl("scan_pairs", TORCH_BOX(&scan_pairs));
}

}  // namespace
}  // namespace graceful_fast
