// What the CPU's bindings share: torch tensors to plain pointers.
#pragma once
#include "tensors.h"

namespace graceful_fast {

// A new, uninitialised, contiguous CPU tensor.
inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype) {
  return empty_on(aoti_torch_device_type_cpu(), 0, shape, dtype);
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
