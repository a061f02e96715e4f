// scan, rows before their products: norms and faults, codes of 8 bits or float16, and what a score of them may be off.
//
// measure   squared norms in the fixed order of math/settle.h, the first bad row, queries widened to float64. 8 threads
// a
//           row; reads each row once, of a bad one once more.
// encode    rows scaled by a power of two to norms in [0.5, 1), rounded to float32, then to codes of 8 bits (the same
//           as on the CPU) or float16, with what that leaves out. 16 threads a row; reads each row once for float16,
//           twice for codes, writes `stride` bytes and 3 facts.
// units     the powers of two that bring typical norms near 1: scan units. One block.
// query_facts, row_facts   facts -> what the tile needs, in scan units. One thread a row.
//
// With r = t b + f for the query, p = s c + e for the row, in scan units, R >= |r| and X >= |p|:
//   |<r, p> - t s <b, c>| <= |t b| |e| + |f| |p|                                               (Cauchy-Schwarz)
// The sum <b, c> is exact in int32 for codes. Tensor cores add products of float16, which float32 holds exactly, in an
// order, in groups and with roundings that are not documented and differ from one generation to the next; measured so
// far: all addends of a group, the sum so far among them, are cut to the exponent of the largest, to 24 bits or more,
// added, and the result is cut to 24 bits. In a group of n >= 1 products that is n losses of addends (the largest loses
// nothing) and one of the result, at most 2 n in all, each below 2^-23 of the largest magnitude M that occurs: 2^-22 M
// a product, whatever the order and the groups. M <= |b| |c| (1 + loss), as every partial sum is bounded by sum |b_i
// c_i|, so with K products, zeros at the end among them,
//   |sum - <b, c>| <= A |b| |c|,  A = K 2^-22 / (1 - K 2^-22)                          K <= 2^17: A < 0.033
// and |t b| |s c| <= (1 + 2^-10)^2 R X, as rounding to float16 of a norm in [0.5, 1) leaves out less than 2^-10 of it.
// All else is bound.h's (exact, tiny) and kCodedSlack of scan_units.h, both per row: (R + X)^2 = R^2 + 2 R X + X^2.
#pragma once
#include "kernels/scan_lanes.cuh"

namespace graceful_fast {
namespace {

constexpr int kCodeLanes = 16;  // of a sum of squares, as in the CPU's widest vectors
constexpr int kSamples = 64;    // rows whose norms are typical

template <class T>
__device__ __forceinline__ void measure_row(const MeasureParams& p, const T* x, int64_t row, bool there) {
  const int lane = int(threadIdx.x) % kLanes;
  double sum = 0;
  for (int64_t i = lane; there && i < p.rows.columns; i += kLanes) {
    const double value = double(widen(x[i]));
    sum = __dadd_rn(sum, __dmul_rn(value, value));
  }
  if (there && p.wide) {
    for (int64_t i = lane; i < p.wide_stride; i += kLanes)
      p.wide[row * p.wide_stride + i] = i < p.rows.columns ? double(widen(x[i])) : 0;
  }
  const double squared = fixed_total(sum);
  if (!there || lane > 0) return;
  p.squared[row] = squared;
  Fault fault = squared == 0 && p.metric == Metric::cosine ? Fault::zero : Fault::none;
  if (!(squared <= kLargestSquare)) {
    fault = Fault::too_large;
    for (int64_t i = 0; i < p.rows.columns; ++i) {
      const double value = double(widen(x[i]));
      if (!(value - value == 0)) fault = Fault::not_finite;
    }
  }
  if (p.fault && fault != Fault::none) atomicMin(p.fault, 4ull * row + (unsigned long long)(fault));
}

__global__ void __launch_bounds__(kRowThreads) scan_measure(MeasureParams p) {
  const int64_t row = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / kLanes;
  const bool there = row < p.rows.rows;
  with_row(p.rows, there ? row : 0, [&](const auto* x) { measure_row(p, x, row, there); });
}

// The sum over the 16 threads of a row, in the order of the CPU's widest vectors.
__device__ __forceinline__ float code_total(float lane) {
#pragma unroll
  for (int step = kCodeLanes / 2; step > 0; step /= 2) lane = __fadd_rn(lane, __shfl_xor_sync(0xffffffffu, lane, step));
  return lane;
}

template <class T>
__device__ __forceinline__ void encode_row(const EncodeParams& p, const T* x, int64_t row, int64_t to, bool there) {
  const int lane = int(threadIdx.x) % kCodeLanes;
  const int64_t dim = p.rows.columns;
  const double squared = there ? p.squared[row] : 0, scale = scale_of(squared);
  const auto value_at = [&](int64_t i) { return there && i < dim ? float(__dmul_rn(double(widen(x[i])), scale)) : 0; };
  const int64_t values = p.kind == Coding::int8 ? p.stride : p.stride / 2;
  float largest = 0, squares = 0, step = 1;
  if (p.kind == Coding::int8) {
    // As quantize_row of cpu/scan_codes.h.
    for (int64_t i = lane; i < dim; i += kCodeLanes) largest = fmaxf(largest, fabsf(value_at(i)));
#pragma unroll
    for (int shift = kCodeLanes / 2; shift > 0; shift /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, shift));
    const bool none = largest < 0x1p-100f;
    // A quotient of float32 numbers, rounded to float64 first: the same.
    step = none ? 0 : float(double(largest) / kRowLevels);
    const float inverse = none ? 0 : float(kRowLevels / double(largest));
    for (int64_t i = lane; i < values; i += kCodeLanes) {
      const float value = value_at(i);
      const int code = int(fmaf(value, inverse, copysignf(0.5f, value)));
      const float rest = fmaf(float(code), -step, value);
      squares = fmaf(rest, rest, squares);
      if (there) static_cast<int8_t*>(p.codes)[to * p.stride + i] = int8_t(code);
    }
  } else {
    for (int64_t i = lane; i < values; i += kCodeLanes) {
      const float value = value_at(i);
      Half code;
      narrow(value, code);
      const float rest = __fsub_rn(value, widen(code));
      squares = fmaf(rest, rest, squares);
      if (there) static_cast<Half*>(p.codes)[to * values + i] = code;
    }
  }
  squares = code_total(squares);
  if (!there || lane > 0) return;
  const double slack = 1 + double(values + 16) * 0x1p-24;
  const float residual =
      float(__dmul_rn(__dadd_rn(__dmul_rn(sqrt(double(squares)), slack),
                                __dmul_rn(__dmul_rn(double(largest), sqrt(double(values))), 0x1p-22)),
                      1 + 0x1p-22));
  const double norm = __dmul_rn(sqrt(squared), 1 + 0x1p-22);
  const bool usable = squared == 0 || (norm > 0x1p-90 && norm < 0x1p90);
  float* const facts = p.facts + to * kFacts;
  const double unscale = inverse_power(scale);
  facts[0] = usable ? float(double(step) * unscale) : 0;
  facts[1] = usable ? float(__dmul_rn(double(residual) * unscale, 1 + 0x1p-22)) : 0;
  facts[2] = usable ? float(__dmul_rn(norm, 1 + 0x1p-23)) : float(kInfinity);
}

__global__ void __launch_bounds__(kRowThreads) scan_encode(EncodeParams p) {
  const int64_t to = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / kCodeLanes;
  const bool there = to < p.count;
  const int64_t row = p.first + (there ? to : 0) * p.step;
  with_row(p.rows, row, [&](const auto* x) { encode_row(p, x, row, to, there); });
}

__device__ inline double typical_square(int64_t rows, const double* squared, const float* facts) {
  double largest = 0;
  const int64_t step = rows <= kSamples ? 1 : rows / kSamples;
  for (int64_t s = threadIdx.x; s < kSamples && s * step < rows; s += 32) {
    const double norm = squared ? 0 : facts[s * step * kFacts + 2];
    const double square = squared ? squared[s * step] : norm * norm;
    if (square > largest && square <= kLargestSquare) largest = square;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  return largest;
}

__global__ void __launch_bounds__(32) scan_units(UnitsParams p) {
  Units units{scale_of(typical_square(p.rows, p.squared, p.facts)), 1};
  if (p.metric == Metric::l2) {
    const double of_queries = scale_of(typical_square(p.queries, p.query_squared, nullptr));
    units.query_scale = units.gallery_scale = fmin(units.gallery_scale, of_queries);
  }
  if (threadIdx.x == 0) *p.units = units;
}

__global__ void __launch_bounds__(kRowThreads) scan_query_facts(QueryFactsParams p) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= p.queries) return;
  double scale;
  Query query = measure_query(p.squared[i], p.metric, p.units->query_scale, p.units->gallery_scale, scale);
  const float* const facts = p.facts + i * kFacts;
  QueryFacts out{0, 0, 0x1p-100f, float(kInfinity)};  // settle everything
  if (query.norm < kInfinity && facts[2] < kInfinity && p.dim <= kLargestCodedDim) {
    const Bound bound(p.dim, false, false);
    const double k = double(operand_stride(p.kind, p.dim) + 64) / 2;
    const double sums = p.kind == Coding::int8 ? 0 : k * 0x1p-22 / (1 - k * 0x1p-22) * (1 + 0x1p-8);
    const double slack = kCodedSlack * query.norm, residual = facts[1] * scale * (1 + kCodedSlack) + slack;
    out.step = float(facts[0] * scale);
    out.coded = rounded_up((query.norm + residual) * (1 + kCodedSlack) + slack);
    out.shared = rounded_up(residual + (sums + 2 * bound.exact) * query.norm + bound.tiny);
    out.rest = rounded_up(bound.exact * query.norm * query.norm + bound.tiny * (1 + query.norm));
  } else {
    query.norm = kInfinity;
  }
  p.out[i] = out;
  p.out_queries[i] = query;
}

__global__ void __launch_bounds__(kRowThreads) scan_row_facts(RowFactsParams p) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= p.count) return;
  const float* const facts = p.facts + i * kFacts;
  if (p.fault && facts[2] == 0 && p.metric == Metric::cosine)
    atomicMin(p.fault, 4ull * i + (unsigned long long)(Fault::zero));
  const CodedRow row = coded_row(facts, p.metric, p.units->gallery_scale);
  const float norm = row.norm < kInfinity ? float(row.norm * (1 + 0x1p-22)) : float(kInfinity);
  p.out[i] = {row.scale, row.residual, norm, row.start};
}

}  // namespace
}  // namespace graceful_fast
