// A row of logits or scores, eight neighbours at a time: 16-byte loads and stores where the address allows, else one by
// one.
#pragma once
#include "kernels/simt.cuh"
#include "math/matrix.h"

namespace graceful_fast {
namespace {

constexpr int kGroup = 8;  // elements: 16 bytes of a half type

// The element type of rows whose type is known at run time only.
struct Mixed {
  Element type;
};

// Elements of type T, as numbers of type S.
template <class T, class S>
struct Row {
  const T* data;
  int64_t count;

  __device__ Row(const Matrix& rows, int64_t i, int64_t count)
      : data(static_cast<const T*>(rows.data) + i * rows.row_stride), count(count) {}
  __device__ S operator[](int64_t j) const { return S(widen(data[j])); }
  // Elements first, first + 1, ...; `fill` where the row has none.
  __device__ void load(int64_t first, S fill, S (&to)[kGroup]) const {
    constexpr int kVector = 16 / sizeof(T);
    if (first >= 0 && first + kGroup <= count && reinterpret_cast<uintptr_t>(data + first) % 16 == 0) {
#pragma unroll
      for (int v = 0; v < kGroup / kVector; ++v) {
        const uint4 raw = simt::load_16B(data + first + v * kVector);
        T element[kVector];
        memcpy(element, &raw, 16);
#pragma unroll
        for (int e = 0; e < kVector; ++e) to[v * kVector + e] = S(widen(element[e]));
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kGroup; ++e) to[e] = first + e >= 0 && first + e < count ? (*this)[first + e] : fill;
  }
  // How far the row's first element is behind a multiple of a group's bytes.
  __device__ int misplaced() const { return int(reinterpret_cast<uintptr_t>(data) / sizeof(T) % kGroup); }
};

template <class S>
struct Row<Mixed, S> {
  const void* data;
  Element type;
  int64_t count;

  __device__ Row(const Matrix& rows, int64_t i, int64_t count) : type(rows.type), count(count) {
    data = static_cast<const char*>(rows.data) + i * rows.row_stride * element_bytes(rows.type);
  }
  __device__ S operator[](int64_t j) const {
    switch (type) {
      case Element::float64:
        return S(static_cast<const double*>(data)[j]);
      case Element::float16:
        return S(widen(static_cast<const Half*>(data)[j]));
      case Element::bfloat16:
        return S(widen(static_cast<const BFloat16*>(data)[j]));
      default:
        return S(static_cast<const float*>(data)[j]);
    }
  }
  __device__ void load(int64_t first, S fill, S (&to)[kGroup]) const {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) to[e] = first + e >= 0 && first + e < count ? (*this)[first + e] : fill;
  }
  __device__ int misplaced() const { return 0; }
};

// Writes the same elements; the row is not read again by whoever writes it.
template <class T, class S>
__device__ void store(T* row, int64_t first, int64_t count, const S (&from)[kGroup]) {
  constexpr int kVector = 16 / sizeof(T);
  if (first >= 0 && first + kGroup <= count && reinterpret_cast<uintptr_t>(row + first) % 16 == 0) {
#pragma unroll
    for (int v = 0; v < kGroup / kVector; ++v) {
      T element[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) narrow(decltype(widen(T{}))(from[v * kVector + e]), element[e]);
      uint4 raw;
      memcpy(&raw, element, 16);
      simt::store_16B_streaming(row + first + v * kVector, raw);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kGroup; ++e) {
    if (first + e >= 0 && first + e < count) narrow(decltype(widen(T{}))(from[e]), row[first + e]);
  }
}

}  // namespace
}  // namespace graceful_fast
