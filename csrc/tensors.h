// What the bindings of every device share: shapes and dtypes of torch tensors, and rows as the kernels take them.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>

#include "check.h"
#include "math/matrix.h"

namespace graceful_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Strides of a contiguous tensor.
struct Strides : std::array<int64_t, 4> {
  explicit Strides(std::initializer_list<int64_t> shape) {
    STD_TORCH_CHECK(shape.size() <= size(), "expected at most 4 dimensions, got ", shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      (*this)[i] = stride;
      stride *= std::max<int64_t>(1, shape.begin()[i]);
    }
  }
};

inline int32_t shim_dtype(ScalarType dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
}

// A new, uninitialised, contiguous tensor. Through the shim: by way of the dispatcher it costs 2 us more.
inline Tensor empty_on(int32_t device_type, int32_t device, std::initializer_list<int64_t> shape, ScalarType dtype) {
  const Strides strides(shape);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.begin(), strides.data(),
                                                         shim_dtype(dtype), device_type, device, &handle));
  return Tensor(handle);
}

// A floating (rows, columns) tensor, unit stride within a row, as kernels take it.
inline Matrix matrix(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2, "[", op, "] ", name, ": expected 2 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.size(0) == 0 || tensor.size(1) <= 1 || tensor.stride(1) == 1, "[", op, "] ", name,
                  ": expected unit stride within a row, got ", tensor.stride(1));
  const ScalarType dtype = tensor.scalar_type();
  const Element type = dtype == ScalarType::Double     ? Element::float64
                       : dtype == ScalarType::Half     ? Element::float16
                       : dtype == ScalarType::BFloat16 ? Element::bfloat16
                                                       : Element::float32;
  STD_TORCH_CHECK(type != Element::float32 || dtype == ScalarType::Float, "[", op, "] ", name,
                  ": expected float16, bfloat16, float32 or float64");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.size(0), tensor.size(1), type};
}

}  // namespace graceful_fast
