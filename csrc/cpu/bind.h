// What the bindings share: torch tensors to plain pointers.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "check.h"

namespace graceful_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A new, uninitialised tensor on the device of `like`.
inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& like) {
  return torch::stable::new_empty(like, {shape.begin(), shape.size()}, dtype);
}

template <class T>
const T* pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace graceful_fast
