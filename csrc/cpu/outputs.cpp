// The blocks behind large outputs.
#include "cpu/outputs.h"

#include <algorithm>
#include <mutex>
#if defined(__linux__)
#include <dlfcn.h>
#include <sys/mman.h>
#endif

namespace graceful_fast {
namespace {

#if defined(__linux__) && defined(MADV_FREE) && defined(MADV_HUGEPAGE)

constexpr size_t kLarge = size_t(4) << 20;  // below, malloc hands out warm memory
constexpr size_t kHuge = size_t(2) << 20;   // a huge page

class Blocks {
 public:
  // A block of at least `bytes`, of which `size` is told; null if the system has none.
  void* take(size_t bytes, size_t& size) {
    {
      const std::lock_guard lock(mutex_);
      for (Block& block : kept_) {
        if (block.data && block.size >= bytes && block.size - bytes <= block.size / 4) {
          void* data = block.data;
          size = block.size;
          block = {};
          return data;
        }
      }
    }
    size = (bytes + kHuge - 1) / kHuge * kHuge;
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    madvise(data, size, MADV_HUGEPAGE);
    return data;
  }
  // The newest block stays as it is: a training step takes it again. Older ones are the system's if it needs memory.
  void give(void* data, size_t size) {
    const std::lock_guard lock(mutex_);
    int slot = 0;
    while (slot < kKept - 1 && kept_[slot].data) ++slot;
    if (kept_[slot].data) munmap(kept_[slot].data, kept_[slot].size);
    if (kept_[0].data && slot > 0) madvise(kept_[0].data, kept_[0].size, MADV_FREE);
    std::move_backward(kept_, kept_ + slot, kept_ + slot + 1);
    kept_[0] = {data, size};
  }

 private:
  static constexpr int kKept = 4;  // the gradients of a step with two losses, and of the step before
  struct Block {
    void* data = nullptr;
    size_t size = 0;
  };
  std::mutex mutex_;
  Block kept_[kKept];  // the newest first
};

// Never destroyed: tensors may outlive every static object.
Blocks& blocks() {
  static Blocks* const instance = new Blocks;
  return *instance;
}

// torch/csrc/stable/c/shim.h, later than this library's target, hence looked up at run time; null before torch 2.13.
using FromBlob = AOTITorchError (*)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t,
                                    AtenTensorHandle*, int32_t, const uint8_t*, int64_t, void (*)(void*, void*), void*);
FromBlob from_blob() {
  constexpr uint64_t k2_13 = uint64_t{2} << 56 | uint64_t{13} << 48;
  if (aoti_torch_abi_version() < k2_13) return nullptr;
  return reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
}

#endif

}  // namespace

Tensor large_empty(std::initializer_list<int64_t> shape, ScalarType dtype, size_t element_size) {
#if defined(__linux__) && defined(MADV_FREE) && defined(MADV_HUGEPAGE)
  static const FromBlob make = from_blob();
  size_t bytes = element_size;
  for (const int64_t extent : shape) bytes *= size_t(extent);
  if (make && bytes >= kLarge) {
    size_t size = 0;
    if (void* data = blocks().take(bytes, size)) {
      const Strides strides(shape);
      AtenTensorHandle handle;
      const auto free = [](void* block, void* its_size) { blocks().give(block, reinterpret_cast<size_t>(its_size)); };
      const AOTITorchError error = make(data, int64_t(shape.size()), shape.begin(), strides.data(), 0,
                                        shim_dtype(dtype), aoti_torch_device_type_cpu(), -1, &handle,
                                        aoti_torch_layout_strided(), nullptr, 0, free, reinterpret_cast<void*>(size));
      if (error != AOTI_TORCH_SUCCESS) {
        blocks().give(data, size);
        return empty(shape, dtype);
      }
      return Tensor(handle);
    }
  }
#endif
  return empty(shape, dtype);
}

}  // namespace graceful_fast
