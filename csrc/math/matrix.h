// A matrix of one of the four floating types, as every kernel gets it, and the one switch over those types.
#pragma once
#include <cstdint>

#include "math/half.h"

namespace graceful_fast {

enum class Element { float32, float64, float16, bfloat16 };

struct Matrix {
  const void* data;    // (rows, columns), unit stride within a row
  int64_t row_stride;  // elements
  int64_t rows, columns;
  Element type;
};

namespace {

// use(a value of the element type)
template <class Use>
inline auto with_type(Element type, Use use) {
  switch (type) {
    case Element::float64:
      return use(double{});
    case Element::float16:
      return use(Half{});
    case Element::bfloat16:
      return use(BFloat16{});
    default:
      return use(float{});
  }
}

GF_HD inline int64_t element_bytes(Element type) {
  return type == Element::float64 ? 8 : type == Element::float32 ? 4 : 2;
}

// use(pointer to the first element, of the element type)
template <class Use>
inline auto with_elements(const Matrix& matrix, Use use) {
  return with_type(matrix.type, [&](auto t) { return use(static_cast<const decltype(t)*>(matrix.data)); });
}

}  // namespace
}  // namespace graceful_fast
