// What the bindings of all endings share on a GPU: queries and gallery checked, measured and coded; the status that
// Python reads; scratch memory of an op.
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "cuda/bind.h"
#include "kernels/scan.h"

namespace graceful_fast {

// On the emulator few rows and pairs reach what takes millions on a GPU.
#ifdef GF_SIMT
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

// Memory of one op. Kept until the op ends: its kernels may be under way, and the emulator knows its extents.
class Scratch {
 public:
  explicit Scratch(const Op& op) : op(op) {}

  template <class T>
  T* take(int64_t count, const char* name) {
    return op.output<T>(tensor(count * int64_t(sizeof(T))), name);
  }
  // Bytes of value `byte`, 0 or 255.
  template <class T>
  T* filled(int64_t count, int byte, const char* name) {
    const Tensor bytes = tensor(count * int64_t(sizeof(T)));
    torch::stable::fill_(bytes, byte);
    return op.update<T>(bytes, name);
  }
  Tensor tensor(int64_t bytes) { return keep(op.empty({bytes}, ScalarType::Byte)); }
  Tensor keep(Tensor tensor) {
    tensors_.push_back(tensor);
    return tensor;
  }

  const Op& op;

 private:
  std::vector<Tensor> tensors_;
};

// A few numbers that kernels count in, and the host reads.
template <class T>
class Counters {
 public:
  // byte: the value of all their bytes at first.
  Counters(Scratch& scratch, int64_t count, int byte, const char* name)
      : on_device_(scratch.tensor(count * int64_t(sizeof(T)))), byte_(byte), count_(count) {
    reset();
    data_ = scratch.op.update<T>(on_device_, name);
  }
  T* data() const { return data_; }
  void reset() const { torch::stable::fill_(on_device_, byte_); }
  std::vector<T> read() const {  // waits for the kernels
    Tensor bytes = empty_on(aoti_torch_device_type_cpu(), 0, {count_ * int64_t(sizeof(T))}, ScalarType::Byte);
    torch::stable::copy_(bytes, on_device_);
    const T* const from = static_cast<const T*>(bytes.const_data_ptr());
    return {from, from + count_};
  }

 private:
  Tensor on_device_;
  const int byte_;
  const int64_t count_;
  T* data_;
};

// An int64 tensor on the op's device.
inline Tensor on_device(const Op& op, const std::vector<int64_t>& values) {
  const int64_t count = int64_t(values.size());
  Tensor host = empty_on(aoti_torch_device_type_cpu(), 0, {count}, ScalarType::Long),
         device = op.empty({count}, ScalarType::Long);
  std::copy(values.begin(), values.end(), static_cast<int64_t*>(host.mutable_data_ptr()));
  torch::stable::copy_(device, host);
  return device;
}

// An int64 vector on the host.
inline std::vector<int64_t> on_host(const Tensor& tensor) {
  Tensor host = empty_on(aoti_torch_device_type_cpu(), 0, {tensor.size(0)}, ScalarType::Long);
  torch::stable::copy_(host, tensor);
  const auto* const from = static_cast<const int64_t*>(host.const_data_ptr());
  return {from, from + tensor.size(0)};
}

constexpr int64_t kStatus = 8;  // as csrc/cpu/scan_bind.h numbers them
using Status = std::vector<int64_t>;

using Given = std::optional<Tensor>;

inline const int64_t* labels(const Op& op, const Given& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  GF_CHECK(tensor->dim() == 1 && tensor->size(0) == count && tensor->scalar_type() == ScalarType::Long &&
               tensor->is_contiguous(),
           "scan", name, ": expected a contiguous int64 vector of ", count);
  return op.input<int64_t>(*tensor, name);
}

// Rows of the gallery as the tile takes them.
struct Range {
  Operand codes;
  const RowFacts* facts;
  int64_t step;          // of facts
  int64_t first, apart;  // row of slot j: first + j * apart

  Range part(int64_t begin, int64_t count) const {
    return {{static_cast<const char*>(codes.data) + begin * codes.pitch, count, codes.pitch},
            facts + begin * step,
            step,
            first + begin * apart,
            apart};
  }
};

// Both sides of a scan.
class Sides {
 public:
  Sides(Scratch& scratch, const Matrix& queries, const Matrix& gallery, int64_t metric, Coding kind)
      : queries(queries), gallery(gallery), metric(Metric(metric)), kind(kind), op_(scratch.op), scratch_(scratch) {
    GF_CHECK(queries.columns >= 1 && gallery.columns == queries.columns, "scan",
             "expected (Q, dim) and (N, dim) with dim at least 1, got dims ", queries.columns, " and ",
             gallery.columns);
    GF_CHECK(metric >= 0 && metric <= 2, "scan", "metric: expected 0 (ip), 1 (l2) or 2 (cosine), got ", metric);
    stride = operand_stride(kind, queries.columns);
  }

  // Codes of the gallery, made before.
  void use_codes(const Tensor& codes, const Given& facts) {
    GF_CHECK(facts.has_value() && codes.dim() == 2 && codes.size(0) == gallery.rows && codes.size(1) == stride &&
                 codes.scalar_type() == ScalarType::Char && codes.is_contiguous(),
             "scan", "codes: expected contiguous int8 (", gallery.rows, ", ", stride, ") with facts");
    GF_CHECK(facts->dim() == 2 && facts->size(0) == gallery.rows && facts->size(1) == kFacts &&
                 facts->scalar_type() == ScalarType::Float && facts->is_contiguous(),
             "scan", "facts: expected contiguous float32 (", gallery.rows, ", ", kFacts, ")");
    codes_ = op_.input<int8_t>(codes, "codes");
    GF_CHECK(reinterpret_cast<uintptr_t>(codes_) % 16 == 0, "scan", "codes: expected an address of 16-byte steps, got ",
             reinterpret_cast<uintptr_t>(codes_));
    facts_ = op_.input<float>(*facts, "facts");
  }

  // What the definition needs of the queries; faults: of the first bad one.
  const DefinitionParams& define_queries(unsigned long long* faults = nullptr) {
    const int64_t q = queries.rows, wide = (queries.columns + 7) / 8 * 8;
    auto* const squared = scratch_.take<double>(q, "squared norms of queries");
    auto* const widened = scratch_.take<double>(q * wide, "queries in float64");
    launch_scan_measure({queries, metric, squared, widened, wide, faults}, op_.stream());
    return definition = {gallery, widened, wide, squared, metric};
  }

  // Measures both sides. False on a bad query or row: see status.
  bool measure(Status& status) {
    Counters<unsigned long long> faults(scratch_, 2, 255, "faults");
    define_queries(faults.data());
    if (!codes_) {
      squared_ = scratch_.take<double>(gallery.rows, "squared norms");
      launch_scan_measure({gallery, metric, squared_, nullptr, 0, faults.data() + 1}, op_.stream());
    }
    units_ = scratch_.take<Units>(1, "units");
    launch_scan_units({metric, definition.square, queries.rows, squared_, facts_, gallery.rows, units_}, op_.stream());
    if (codes_) {
      row_facts_ = scratch_.take<RowFacts>(gallery.rows, "row facts");
      launch_scan_row_facts({metric, units_, facts_, gallery.rows, row_facts_, faults.data() + 1}, op_.stream());
    }
    const auto found = faults.read();
    for (int side = 0; side < 2; ++side) {
      if (found[side] == ~0ull) continue;
      status[0] = side + 1, status[1] = int64_t(found[side] / 4), status[2] = int64_t(found[side] % 4);
      return false;
    }
    return true;
  }

  // Codes of the queries, and room for those of a chunk of rows.
  void encode_queries() {
    const int64_t q = queries.rows;
    auto* const codes = scratch_.take<char>(q * stride, "codes of queries");
    auto* const facts = scratch_.take<float>(q * kFacts, "facts of queries");
    launch_scan_encode({queries, 0, 1, q, kind, definition.square, codes, stride, facts}, op_.stream());
    query_facts_ = scratch_.take<QueryFacts>(q, "query facts");
    facts_of_queries = scratch_.take<Query>(q, "queries in scan units");
    launch_scan_query_facts(
        {metric, kind, queries.columns, q, units_, definition.square, facts, query_facts_, facts_of_queries},
        op_.stream());
    query_codes_ = {codes, q, stride};
    chunk = std::clamp<int64_t>(kChunkBytes / (stride + 28), 128, int64_t(1) << 20) / 128 * 128;
    chunk = std::min(chunk, gallery.rows);
    if (codes_) return;
    chunk_codes_ = scratch_.take<char>(chunk * stride, "codes");
    chunk_facts_ = scratch_.take<float>(chunk * kFacts, "facts");
    row_facts_ = scratch_.take<RowFacts>(chunk, "row facts");
  }

  // Rows first, first + apart, ...; up to `chunk` of them.
  Range encode(int64_t first, int64_t apart, int64_t count) {
    if (codes_) return {{codes_ + first * stride, count, apart * stride}, row_facts_ + first, apart, first, apart};
    launch_scan_encode({gallery, first, apart, count, kind, squared_, chunk_codes_, stride, chunk_facts_},
                       op_.stream());
    launch_scan_row_facts({metric, units_, chunk_facts_, count, row_facts_, nullptr}, op_.stream());
    return {{chunk_codes_, count, stride}, row_facts_, 1, first, apart};
  }

  // Queries from q0 to q1 - 1 with these rows.
  TileParams tile(int64_t q0, int64_t q1, const Range& range) const {
    const Operand some{static_cast<const char*>(query_codes_.data) + q0 * stride, q1 - q0, stride};
    return {kind,
            some,
            range.codes,
            stride,
            query_facts_ + q0,
            range.facts,
            range.step,
            square_factor(queries.columns, metric)};
  }

  const Matrix queries, gallery;
  const Metric metric;
  const Coding kind;
  int64_t stride;  // bytes of a row of codes
  int64_t chunk;   // rows coded at a time
  DefinitionParams definition;
  Query* facts_of_queries;

 private:
  static constexpr int64_t kChunkBytes = int64_t(256) << (kEmulated ? 8 : 20);

  const Op& op_;
  Scratch& scratch_;
  const int8_t* codes_ = nullptr;
  const float* facts_ = nullptr;
  double* squared_ = nullptr;
  Units* units_;
  Operand query_codes_;
  QueryFacts* query_facts_;
  char* chunk_codes_;
  float* chunk_facts_;
  RowFacts* row_facts_;
};

// Pairs that a scan score cannot decide: listed by a launch, settled, and forgotten.
class UnsurePairs {
 public:
  // Queries of a launch, so that a row of each is sure to fit.
  static constexpr int64_t kMostQueries = int64_t(1) << (kEmulated ? 11 : 22);

  UnsurePairs(Scratch& scratch, const Sides& sides)
      : capacity_(std::min(kMostQueries, sides.queries.rows * std::min(sides.chunk, kMostQueries))),
        pairs_(scratch.take<Pair>(capacity_, "unsure pairs")),
        count_(scratch, 1, 0, "count of unsure pairs") {}

  // scan(part of the range, Unsure) lists, settle(count) settles the list; how many there were. Where the list is too
  // short the range is scanned again in parts that fit, and what is sure is not counted twice.
  template <class Scan, class Settle>
  int64_t run(const Range& range, int64_t queries, Scan scan, Settle settle) const {
    const int64_t found = one(range, false, scan, settle);
    if (found <= capacity_) return found;
    const int64_t rows = std::max<int64_t>(1, capacity_ / queries);
    for (int64_t at = 0; at < range.codes.rows; at += rows) {
      one(range.part(at, std::min(rows, range.codes.rows - at)), true, scan, settle);
    }
    return found;
  }

 private:
  template <class Scan, class Settle>
  int64_t one(const Range& range, bool only, Scan scan, Settle settle) const {
    count_.reset();
    scan(range, Unsure{pairs_, capacity_, count_.data(), only});
    const int64_t found = int64_t(count_.read()[0]);
    if (found > 0 && found <= capacity_) settle(found);
    return found;
  }

  const int64_t capacity_;
  Pair* const pairs_;
  const Counters<unsigned long long> count_;
};

}  // namespace graceful_fast
