// scan_collect, scan_shortlist, scan_settle, scan_quantize: torch tensors -> Params -> kernels, launch after launch.
#include <limits>
#include <tuple>

#include "cuda/scan_sides.h"

namespace graceful_fast {
namespace {

// keys, rows: the k best so far of all queries.
struct Best {
  int64_t k;
  double* keys;
  int64_t* rows;
};

Best best_of(const Op& op, const Tensor& keys, const Tensor& rows, int64_t q) {
  GF_CHECK(keys.dim() == 2 && keys.size(0) == q && keys.size(1) >= 1 && keys.scalar_type() == ScalarType::Double &&
               keys.is_contiguous() && rows.dim() == 2 && rows.size(0) == q && rows.size(1) == keys.size(1) &&
               rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
           "scan", "keys, rows: expected contiguous float64 and int64 (", q, ", k)");
  return {keys.size(1), op.update<double>(keys, "keys"), op.update<int64_t>(rows, "rows")};
}

struct Labels {
  const int64_t *query_ids, *gallery_ids, *query_groups, *gallery_groups;
};

Labels labels_of(const Op& op, const Sides& sides, const Given& query_ids, const Given& gallery_ids,
                 const Given& query_groups, const Given& gallery_groups) {
  GF_CHECK(bool(query_ids) == bool(gallery_ids) && bool(query_groups) == bool(gallery_groups), "scan",
           "expected ids and groups of both sides or of none");
  const int64_t q = sides.queries.rows, n = sides.gallery.rows;
  return {labels(op, query_ids, "query_ids", q), labels(op, gallery_ids, "gallery_ids", n),
          labels(op, query_groups, "query_groups", q), labels(op, gallery_groups, "gallery_groups", n)};
}

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

// The scan of a gallery with the ending `collect`, for as many queries at a time as their lists have room.
class Collection {
 public:
  // deferred: nothing can be settled, a list that stays too small ends the scan.
  Collection(Scratch& scratch, Sides& sides, const Best& best, const Labels& labels, int64_t first_row,
             const int64_t* numbers, int64_t capacity, int64_t queries, bool deferred)
      : op_(scratch.op),
        scratch_(scratch),
        sides_(sides),
        best_(best),
        labels_(labels),
        first_row_(first_row),
        numbers_(numbers),
        deferred_(deferred),
        lists_{scratch.take<Candidate>(queries * (capacity + best.k), "candidates"), capacity, best.k},
        counts_(scratch, queries, 0, "counts"),
        states_{scratch.take<double>(queries, "floors"), scratch.take<float>(queries, "limits"), counts_.data(),
                scratch.take<int32_t>(queries, "kept"), scratch.take<uint8_t>(queries, "pending")},
        totals_(scratch, 2, 0, "totals"),
        settled_(scratch, 2, 0, "settled") {}

  // Rows of all lists, query after query; offsets[0]: where the first begins, in; offsets[i + 1]: where list i ends.
  Tensor listed(int64_t* offsets) const {
    const int64_t q = q1_ - q0_;
    const auto counts = counts_.read();
    std::vector<int64_t> own(q + 1, 0);
    for (int64_t i = 0; i < q; ++i) {
      own[i + 1] = own[i] + counts[i];
      offsets[i + 1] = offsets[0] + own[i + 1];
    }
    const Tensor rows = scratch_.keep(op_.empty({own[q]}, ScalarType::Long));
    const Tensor starts = scratch_.keep(on_device(op_, own));
    launch_scan_list_rows({lists_, op_.input<int64_t>(starts, "offsets"), q, op_.output<int64_t>(rows, "listed")},
                          op_.stream());
    return rows;
  }

  const Lists& lists() const { return lists_; }
  const ListStates& states() const { return states_; }
  struct Settled {
    int64_t candidates, lists;
  };
  Settled settled() const {
    const auto counts = settled_.read();
    return {int64_t(counts[0]), int64_t(counts[1])};
  }

  void begin(int64_t q0, int64_t q1) {
    q0_ = q0, q1_ = q1;
    launch_scan_begin(settlement(kAll, false), op_.stream());
  }

  // All rows. False where a deferred scan gives up.
  bool scan() {
    const int64_t n = sides_.gallery.rows;
    int64_t seen = std::min(lists_.capacity, sides_.chunk);
    if (n > lists_.capacity) pass(Pass::seeds, sides_.encode(0, n / seen, seen));
    for (int64_t row = 0; row < n;) {
      // So many that about half of what a list has room for reaches the floor that `seen` rows have given.
      const int64_t room = (lists_.capacity - most()) / 2;
      const int64_t wanted = std::max(lists_.capacity, seen / lists_.k * room);
      const int64_t count = std::min({wanted, sides_.chunk, n - row});
      if (!scan(sides_.encode(row, 1, count))) return false;
      row += count;
      seen = std::max(seen, row);
    }
    return true;
  }

  // Lists longer than `above`, and those of pending queries if wanted -> the k best.
  void settle(int64_t above, bool pending) { launch_scan_settle(settlement(above, pending), op_.stream()); }

 private:
  struct Totals {
    int32_t too_small, to_settle;
  };

  // A list may keep half of its room from launch to launch.
  int64_t most() const { return lists_.capacity / 2; }

  SettleParams settlement(int64_t above, bool pending) const {
    DefinitionParams definition = sides_.definition;
    definition.wide += q0_ * definition.wide_stride;
    definition.square += q0_;
    return {definition,
            lists_,
            states_,
            q1_ - q0_,
            sides_.facts_of_queries + q0_,
            above,
            pending,
            first_row_,
            numbers_,
            best_.keys + q0_ * best_.k,
            best_.rows + q0_ * best_.k,
            settled_.data()};
  }

  static const int64_t* from(const int64_t* values, int64_t first) { return values ? values + first : nullptr; }

  Totals pass(Pass pass, const Range& range) {
    const int64_t q = q1_ - q0_;
    launch_scan_limits({states_, q, pass == Pass::again || pass == Pass::piece}, op_.stream());
    launch_scan_collect(
        sides_.tile(q0_, q1_, range),
        {states_.limit, q, lists_, states_.counts, range.first, range.apart, from(labels_.query_ids, q0_),
         labels_.gallery_ids, from(labels_.query_groups, q0_), labels_.gallery_groups},
        op_.stream());
    totals_.reset();
    launch_scan_trim({lists_, states_, q, pass, deferred_ ? kAll : most(), totals_.data()}, op_.stream());
    const auto totals = totals_.read();
    if (totals[1] > 0) settle(most(), false);
    return {totals[0], totals[1]};
  }

  bool scan(const Range& range) {
    if (pass(Pass::first, range).too_small == 0) return true;
    if (pass(Pass::again, range).too_small == 0) return true;
    if (deferred_) return false;
    for (int64_t at = 0; at < range.codes.rows; at += lists_.capacity) {
      settle(kAll, true);
      pass(Pass::piece, range.part(at, std::min(lists_.capacity, range.codes.rows - at)));
    }
    return true;
  }

  const Op& op_;
  Scratch& scratch_;
  Sides& sides_;
  const Best best_;
  const Labels labels_;
  const int64_t first_row_;
  const int64_t* const numbers_;
  const bool deferred_;
  const Lists lists_;
  const Counters<int32_t> counts_;
  const ListStates states_;
  const Counters<int32_t> totals_;
  const Counters<unsigned long long> settled_;
  int64_t q0_ = 0, q1_ = 0;
};

// Room of a list, and queries at a time.
struct Plan {
  int64_t capacity, queries;

  Plan(const Sides& sides, int64_t k, int64_t bytes) {
    const int64_t q = sides.queries.rows, n = sides.gallery.rows, size = sizeof(Candidate);
    const int64_t wanted = std::min(n, 4 * k + 2048), least = std::min(n, 2 * k + 256);
    capacity = std::max(least, std::min(wanted, bytes / (size * q) - k));
    queries = std::clamp<int64_t>(bytes / (size * (capacity + k)), 1, q);
  }
};

Tensor scan_collect(const Tensor& queries, const Tensor& gallery, const Given& codes, const Given& facts, Tensor keys,
                    Tensor rows, int64_t first_row, int64_t metric, const Given& query_ids, const Given& gallery_ids,
                    const Given& query_groups, const Given& gallery_groups, bool coded, int64_t candidate_bytes) {
  const Op op("scan_collect", queries);
  Scratch scratch(op);
  Sides sides(scratch, op.rows(queries, "queries"), op.rows(gallery, "gallery"), metric,
              coded || codes ? Coding::int8 : Coding::float16);
  const Best best = best_of(op, keys, rows, sides.queries.rows);
  const Labels labels = labels_of(op, sides, query_ids, gallery_ids, query_groups, gallery_groups);
  if (codes) sides.use_codes(*codes, facts);
  Status status(kStatus, 0);
  if (sides.queries.rows == 0 || sides.gallery.rows == 0 || !sides.measure(status)) return on_device(op, status);
  sides.encode_queries();
  const Plan plan(sides, best.k, candidate_bytes);
  Collection found(scratch, sides, best, labels, first_row, nullptr, plan.capacity, plan.queries, false);
  for (int64_t q0 = 0; q0 < sides.queries.rows; q0 += plan.queries) {
    found.begin(q0, std::min(sides.queries.rows, q0 + plan.queries));
    const auto before = found.settled();
    found.scan();
    status[4] += found.settled().lists - before.lists;
    found.settle(0, false);
  }
  status[3] = found.settled().candidates;
  status[sides.kind == Coding::int8 ? 5 : 6] = sides.gallery.rows;
  return on_device(op, status);
}

// The rows of the codes that may be among the k best: (offsets [Q + 1], rows of each query, ascending by query).
std::tuple<Tensor, Tensor, Tensor> scan_shortlist(const Tensor& queries, const Tensor& codes, const Tensor& facts,
                                                  const Tensor& keys, const Tensor& rows, int64_t metric,
                                                  const Given& query_ids, const Given& gallery_ids,
                                                  const Given& query_groups, const Given& gallery_groups,
                                                  int64_t candidate_bytes) {
  const Op op("scan_shortlist", queries);
  Scratch scratch(op);
  const int64_t dim = queries.size(1), q = queries.size(0);
  Sides sides(scratch, op.rows(queries, "queries"), {nullptr, dim, codes.size(0), dim, Element::float32}, metric,
              Coding::int8);
  const Best best = best_of(op, keys, rows, q);
  const Labels labels = labels_of(op, sides, query_ids, gallery_ids, query_groups, gallery_groups);
  GF_CHECK(dim <= kLargestCodedDim, "scan", "codes: expected a dim up to ", kLargestCodedDim);
  sides.use_codes(codes, facts);
  Status status(kStatus, 0);
  std::vector<int64_t> offsets(q + 1, 0);
  std::vector<Tensor> lists;
  if (q > 0 && sides.gallery.rows > 0 && sides.measure(status)) {
    sides.encode_queries();
    const Plan plan(sides, best.k, candidate_bytes);
    Collection found(scratch, sides, best, labels, 0, nullptr, plan.capacity, plan.queries, true);
    for (int64_t q0 = 0; q0 < q && !status[7]; q0 += plan.queries) {
      const int64_t q1 = std::min(q, q0 + plan.queries);
      found.begin(q0, q1);
      if (found.scan()) {
        lists.push_back(found.listed(offsets.data() + q0));
      } else {
        status[7] = 1;
      }
    }
    status[5] = sides.gallery.rows;
  }
  if (status[7]) std::fill(offsets.begin(), offsets.end(), 0);
  Tensor listed = op.empty({offsets[q]}, ScalarType::Long);
  for (int64_t at = 0, i = 0; at < offsets[q]; at += lists[i++].size(0)) {
    Tensor part = torch::stable::narrow(listed, 0, at, lists[i].size(0));
    torch::stable::copy_(part, lists[i]);
  }
  return {on_device(op, offsets), listed, on_device(op, status)};
}

// A shortlist, as places in `taken`, whose rows have these numbers -> keys, rows.
Tensor scan_settle(const Tensor& queries, const Tensor& taken, const Tensor& numbers, const Tensor& offsets,
                   const Tensor& places, Tensor keys, Tensor rows, int64_t metric) {
  const Op op("scan_settle", queries);
  Scratch scratch(op);
  Sides sides(scratch, op.rows(queries, "queries"), op.rows(taken, "taken"), metric, Coding::int8);
  const int64_t q = sides.queries.rows;
  const Best best = best_of(op, keys, rows, q);
  const int64_t* const number = labels(op, numbers, "numbers", sides.gallery.rows);
  const int64_t* const offset = labels(op, offsets, "offsets", q + 1);
  const std::vector<int64_t> ends = on_host(offsets), all = on_host(places);
  const int64_t* const place = labels(op, places, "places", ends[q]);
  int64_t capacity = 0;
  for (int64_t i = 0; i < q; ++i) {
    GF_CHECK(ends[i] >= 0 && ends[i + 1] >= ends[i], "scan", "offsets: expected ascending numbers");
    capacity = std::max(capacity, ends[i + 1] - ends[i]);
  }
  for (const int64_t row : all) {
    GF_CHECK(row >= 0 && row < sides.gallery.rows, "scan", "places: expected 0 to ", sides.gallery.rows, ", got ", row);
  }
  Status status(kStatus, 0);
  if (all.empty() || !sides.measure(status)) return on_device(op, status);
  sides.encode_queries();
  Collection found(scratch, sides, best, {}, 0, number, capacity, q, false);
  found.begin(0, q);
  launch_scan_place({found.lists(), found.states(), q, offset, place}, op.stream());
  found.settle(0, false);
  status[3] = found.settled().candidates;
  return on_device(op, status);
}

// Codes of 8 bits of each row: (codes (N, stride), facts (N, 3): scale, residual, norm; status: first bad row or -1,
// the fault).
std::tuple<Tensor, Tensor, Tensor> scan_quantize(const Tensor& rows) {
  const Op op("scan_quantize", rows);
  Scratch scratch(op);
  const Matrix from = op.rows(rows, "rows");
  GF_CHECK(from.columns >= 1 && from.columns <= kLargestCodedDim, "scan", "rows: expected a dim of 1 to ",
           kLargestCodedDim, ", got ", from.columns);
  const int64_t stride = code_stride(from.columns);
  Tensor codes = op.empty({from.rows, stride}, ScalarType::Char);
  Tensor facts = op.empty({from.rows, kFacts}, ScalarType::Float);
  const Counters<unsigned long long> fault(scratch, 1, 255, "fault");
  auto* const squared = scratch.take<double>(from.rows, "squared norms");
  launch_scan_measure({from, Metric::ip, squared, nullptr, 0, fault.data()}, op.stream());
  launch_scan_encode({from, 0, 1, from.rows, Coding::int8, squared, op.output<int8_t>(codes, "codes"), stride,
                      op.output<float>(facts, "facts")},
                     op.stream());
  const unsigned long long found = fault.read()[0];
  return {codes, facts, on_device(op, found == ~0ull ? Status{-1, 0} : Status{int64_t(found / 4), int64_t(found % 4)})};
}

GF_DEVICE_LIBRARY_IMPL(m) {
  m.impl("scan_collect", TORCH_BOX(&scan_collect));
  m.impl("scan_shortlist", TORCH_BOX(&scan_shortlist));
  m.impl("scan_settle", TORCH_BOX(&scan_settle));
  m.impl("scan_quantize", TORCH_BOX(&scan_quantize));
}

}  // namespace
}  // namespace graceful_fast
