// What the CUDA bindings share: an op's device, stream and tensors. On the emulator (GF_SIMT) tensors are CPU tensors
// whose storage plays device memory: each one that an op hands to its kernels is registered by name for the life of the
// op, and kernels may touch nothing else. Kernels' headers are for launchers only; a launcher takes the stream as a
// void*.
#pragma once
#include <cstdint>

#include "tensors.h"

#ifdef GF_SIMT
#include <vector>

#include "simt/control.h"
#define GF_DEVICE_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(graceful_fast_simt, CPU, m)
#else
#include <torch/csrc/stable/accelerator.h>
#define GF_DEVICE_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(graceful_fast, CUDA, m)
#endif

namespace graceful_fast {

// One call of an op: `const Op op("flips", target);` first thing in a binding. The device of `on` is the current one
// while it lives; its current stream is the op's. Outputs come from torch's caching allocator.
class Op {
 public:
  Op(const char* name, const Tensor& on)
      : name_(name), type_(device_type(on)), device_(on.get_device_index()), guard_(on) {
#ifndef GF_SIMT
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
#endif
  }
  Op(const Op&) = delete;

  void* stream() const { return stream_; }  // cudaStream_t

  // What kernels read; write; both.
  template <class T>
  const T* input(const Tensor& tensor, const char* name) const {
    return use<const T>(tensor, name, true);
  }
  template <class T>
  T* output(const Tensor& tensor, const char* name) const {
    return use<T>(tensor, name, false);
  }
  template <class T>
  T* update(const Tensor& tensor, const char* name) const {
    return use<T>(tensor, name, true);
  }
  // A floating (rows, columns) tensor that kernels read, unit stride within a row.
  Matrix rows(const Tensor& tensor, const char* name) const {
    Matrix rows = matrix(tensor, name_, name);
    rows.data = input<void>(tensor, name);
    return rows;
  }
  // A new, uninitialised, contiguous tensor on the op's device.
  Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype) const {
    return empty_on(type_, device_, shape, dtype);
  }

 private:
  template <class T>
  T* use(const Tensor& tensor, const char* name, bool initialised) const {
    STD_TORCH_CHECK(device_type(tensor) == type_ && tensor.get_device_index() == device_, "[", name_, "] ", name,
                    ": expected the device of the op's other tensors");
    auto* const data = static_cast<T*>(tensor.mutable_data_ptr());
#ifdef GF_SIMT
    int64_t last = 0;  // element
    for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
    if (tensor.numel() > 0) {
      guard_.emplace_back(name, data, size_t(last + 1) * size_t(tensor.element_size()),
                          initialised ? simt::Buffer::Contents::initialised : simt::Buffer::Contents::uninitialised);
    }
#else
    (void)initialised;
#endif
    return data;
  }
  static int32_t device_type(const Tensor& tensor) {
    int32_t type;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type;
  }

#ifdef GF_SIMT
  struct Guard : std::vector<simt::Buffer> {
    explicit Guard(const Tensor&) {}
  };
#else
  struct Guard : torch::stable::accelerator::DeviceGuard {
    explicit Guard(const Tensor& on) : DeviceGuard(on.get_device_index()) {}
  };
#endif
  const char* name_;
  int32_t type_, device_;
  void* stream_ = nullptr;
  mutable Guard guard_;
};

}  // namespace graceful_fast
