// scan: torch tensors -> CollectParams -> kernels.
#include "cpu/scan.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/scan_bind.h"

namespace graceful_fast {
namespace {

constexpr int64_t kMostQueriesATask = 4096;  // bounds the candidates in memory; each block reads the gallery once
constexpr int64_t kRowsATask = 4096;         // fewer, and warming up the limits costs more than a thread brings
constexpr int64_t kQueriesATask = 128;       // fewer, and packing the gallery costs over a tenth of a task
constexpr int64_t kQueriesABlock = 16;       // settled by one thread in one go

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

// Threads share the gallery first, so that each row is packed once; if its codes are made already, which pack at little
// cost, the queries: rows of the whole gallery then raise each floor.
void divide(ScanParams& params, int64_t candidates_a_query, int64_t most_candidates) {
  const int64_t q = params.queries.rows, threads = torch::stable::get_num_threads();
  const int64_t most_query_parts = (q + kQueriesATask - 1) / kQueriesATask;
  const int64_t most_gallery_parts = std::min(params.gallery.rows / std::max(kRowsATask, 4 * candidates_a_query),
                                              most_candidates / (q * candidates_a_query));
  const int64_t query_parts = params.codes.data ? std::min(threads, most_query_parts) : 1;
  params.gallery_parts = std::clamp<int64_t>(most_gallery_parts, 1, (threads + query_parts - 1) / query_parts);
  params.query_parts = std::max((q + kMostQueriesATask - 1) / kMostQueriesATask,
                                std::min(threads / params.gallery_parts, most_query_parts));
}

// The candidates of a scan and what its tasks report.
class Collection {
 public:
  // k_fold, room: how many candidates, so that they seldom have to be settled before the scan has ended.
  Collection(CollectParams& params, const ScanKernels& kernels, int64_t k_fold, int64_t room, int64_t bytes)
      : p_(params), kernels_(kernels), floor_(params.queries.rows, -std::numeric_limits<double>::infinity()) {
    const int64_t least = std::min(p_.k, p_.gallery.rows) + 32, most = bytes / int64_t(sizeof(Candidate));
    const int64_t wanted = std::min(k_fold * p_.k, p_.gallery.rows) + room;
    p_.capacity = std::max(least, std::min(wanted, most / p_.queries.rows));
    divide(p_, p_.capacity, most);
    const int64_t lists = p_.queries.rows * p_.gallery_parts;
    candidates_ = std::make_unique_for_overwrite<Candidate[]>(lists * p_.capacity);
    counts_.resize(lists);
    p_.floor = floor_.data();
    p_.candidates = candidates_.get();
    p_.counts = counts_.data();
  }

  // False on a bad row or where a deferred scan gives up: see status.
  bool scan(int64_t* status) {
    const int64_t tasks = p_.query_parts * p_.gallery_parts;
    std::vector<ScanReport> reports(tasks);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) kernels_.collect(p_, task, reports[task]);
    });
    for (int64_t task = p_.gallery_parts; task < tasks; ++task) {  // the same rows, for other queries
      reports[task].coded_rows = reports[task].plain_rows = 0;
    }
    write_status(reports, status);
    if (status[0] || status[7]) return false;
    torch::stable::parallel_for(0, p_.queries.rows, kQueriesABlock, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels_.trim(p_, i);
    });
    return true;
  }

 private:
  CollectParams& p_;
  const ScanKernels& kernels_;
  std::vector<double> floor_;
  std::unique_ptr<Candidate[]> candidates_;
  std::vector<int64_t> counts_;
};

// Candidates -> the k best.
void settle(const CollectParams& params, const ScanKernels& kernels, int64_t* status) {
  const int64_t q = params.queries.rows, blocks = (q + kQueriesABlock - 1) / kQueriesABlock;
  std::vector<ScanReport> reports(blocks);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.settle(params, i * kQueriesABlock, std::min(q, (i + 1) * kQueriesABlock), reports[i]);
    }
  });
  write_status(reports, status);
}

using Labels = std::optional<Tensor>;

void use_labels(CollectParams& params, const Labels& query_ids, const Labels& gallery_ids, const Labels& query_groups,
                const Labels& gallery_groups) {
  GF_CHECK(bool(query_ids) == bool(gallery_ids) && bool(query_groups) == bool(gallery_groups), "scan",
           "expected ids and groups of both sides or of none");
  params.query_ids = labels(query_ids, "query_ids", params.queries.rows);
  params.gallery_ids = labels(gallery_ids, "gallery_ids", params.gallery.rows);
  params.query_groups = labels(query_groups, "query_groups", params.queries.rows);
  params.gallery_groups = labels(gallery_groups, "gallery_groups", params.gallery.rows);
}

void use_best(CollectParams& params, const Tensor& keys, const Tensor& rows) {
  const int64_t q = params.queries.rows;
  GF_CHECK(keys.dim() == 2 && keys.size(0) == q && keys.size(1) >= 1 && keys.scalar_type() == ScalarType::Double &&
               keys.is_contiguous() && rows.dim() == 2 && rows.size(0) == q && rows.size(1) == keys.size(1) &&
               rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
           "scan", "keys, rows: expected contiguous float64 and int64 (", q, ", k)");
  params.k = keys.size(1);
  params.keys = mutable_pointer<double>(keys);
  params.rows = mutable_pointer<int64_t>(rows);
}

// keys, rows: the k best so far, best first, -1 where there is none; out: with this gallery's rows. See write_status.
Tensor scan_collect(const Tensor& queries, const Tensor& gallery, const std::optional<Tensor>& codes,
                    const std::optional<Tensor>& facts, Tensor keys, Tensor rows, int64_t first_row, int64_t metric,
                    const Labels& query_ids, const Labels& gallery_ids, const Labels& query_groups,
                    const Labels& gallery_groups, bool coded, int64_t candidate_bytes) {
  const ScanKernels& kernels = GF_CHOOSE_TABLE(scan);
  CollectParams params{};
  params.gallery = matrix(gallery, "scan", "gallery");
  use_queries(params, kernels, queries, metric);
  use_best(params, keys, rows);
  use_labels(params, query_ids, gallery_ids, query_groups, gallery_groups);
  params.first_row = first_row;
  params.codes = given_codes(codes, facts, params.gallery.rows, params.dim);
  params.coded = (coded || params.codes.data) && params.dim <= kLargestCodedDim;
  Tensor status = new_status();
  if (params.queries.rows == 0 || params.gallery.rows == 0) return status;
  Collection found(params, kernels, params.coded ? 16 : 2, params.coded ? 128 : 64, candidate_bytes);
  int64_t* const state = mutable_pointer<int64_t>(status);
  if (found.scan(state)) settle(params, kernels, state);
  return status;
}

// The rows of the codes that may be among the k best: (offsets [Q + 1], rows of each query, ascending by query).
std::tuple<Tensor, Tensor, Tensor> scan_shortlist(const Tensor& queries, const Tensor& codes, const Tensor& facts,
                                                  const Tensor& keys, const Tensor& rows, int64_t metric,
                                                  const Labels& query_ids, const Labels& gallery_ids,
                                                  const Labels& query_groups, const Labels& gallery_groups,
                                                  int64_t candidate_bytes) {
  const ScanKernels& kernels = GF_CHOOSE_TABLE(scan);
  CollectParams params{};
  params.gallery = {nullptr, queries.size(1), codes.size(0), queries.size(1), Element::float32};
  params.codes = given_codes(codes, facts, codes.size(0), queries.size(1));
  use_queries(params, kernels, queries, metric);
  use_best(params, keys, rows);
  use_labels(params, query_ids, gallery_ids, query_groups, gallery_groups);
  GF_CHECK(params.dim <= kLargestCodedDim, "scan", "codes: expected a dim up to ", kLargestCodedDim);
  params.coded = params.deferred = true;
  const int64_t q = params.queries.rows;
  Tensor status = new_status(), offsets = empty({q + 1}, ScalarType::Long);
  int64_t* const offset = mutable_pointer<int64_t>(offsets);
  std::fill_n(offset, q + 1, 0);
  if (q == 0 || params.gallery.rows == 0) return {offsets, empty({0}, ScalarType::Long), status};
  Collection found(params, kernels, 16, 1024, candidate_bytes);
  const bool whole = found.scan(mutable_pointer<int64_t>(status));
  for (int64_t i = 0; whole && i < q; ++i) {
    offset[i + 1] = offset[i];
    for (int64_t part = 0; part < params.gallery_parts; ++part)
      offset[i + 1] += params.counts[i * params.gallery_parts + part];
  }
  Tensor listed = empty({offset[q]}, ScalarType::Long);
  int64_t* row = mutable_pointer<int64_t>(listed);
  for (int64_t list = 0; whole && list < q * params.gallery_parts; ++list) {
    const Candidate* const candidates = params.candidates + list * params.capacity;
    for (int64_t j = 0; j < params.counts[list]; ++j) *row++ = candidates[j].row;
  }
  return {offsets, listed, status};
}

// A shortlist, as places in `taken`, whose rows have these numbers -> keys, rows.
Tensor scan_settle(const Tensor& queries, const Tensor& taken, const Tensor& numbers, const Tensor& offsets,
                   const Tensor& places, Tensor keys, Tensor rows, int64_t metric) {
  const ScanKernels& kernels = GF_CHOOSE_TABLE(scan);
  CollectParams params{};
  params.gallery = matrix(taken, "scan", "taken");
  use_queries(params, kernels, queries, metric);
  use_best(params, keys, rows);
  const int64_t q = params.queries.rows;
  params.numbers = labels(numbers, "numbers", params.gallery.rows);
  const int64_t* const offset = labels(offsets, "offsets", q + 1);
  const int64_t* const place = labels(places, "places", offset[q]);
  Tensor status = new_status();
  params.gallery_parts = 1;
  std::vector<int64_t> counts(q);
  for (int64_t i = 0; i < q; ++i) {
    counts[i] = offset[i + 1] - offset[i];
    GF_CHECK(counts[i] >= 0 && offset[i] >= 0, "scan", "offsets: expected ascending numbers");
    params.capacity = std::max(params.capacity, counts[i]);
  }
  const auto candidates = std::make_unique_for_overwrite<Candidate[]>(q * params.capacity);
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < counts[i]; ++j) {
      const int64_t row = place[offset[i] + j];
      GF_CHECK(row >= 0 && row < params.gallery.rows, "scan", "places: expected 0 to ", params.gallery.rows, ", got ",
               row);
      candidates[i * params.capacity + j].row = row;
    }
  }
  params.candidates = candidates.get();
  params.counts = counts.data();
  settle(params, kernels, mutable_pointer<int64_t>(status));
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
  m.impl("scan_shortlist", TORCH_BOX(&scan_shortlist));
  m.impl("scan_settle", TORCH_BOX(&scan_settle));
  m.impl("scan_quantize", TORCH_BOX(&scan_quantize));
}

}  // namespace
}  // namespace graceful_fast
