// How a kernel reaches memory otherwise than by a plain pointer: dynamic shared memory, asynchronous copies, atomics.
#pragma once
#include "warp.h"

namespace simt {

constexpr size_t align_up(size_t offset, size_t align) { return (offset + align - 1) / align * align; }

namespace host {

// Where the array at [offset, offset + bytes) of dynamic shared memory lies; all threads must agree on the arrays.
void* shared_array(size_t offset, size_t bytes, size_t align, const char* type, Site site);

void copy_async(void* shared, const void* global, int bytes, Site site);
void commit_copies();
void wait_copies(unsigned pending);

uint4 load_16B(const void* from, Site site);
void store_16B(void* to, uint4 value, Site site);

enum class Atomic { add, min, max, exchange, bit_and, bit_or };
template <typename T>
T atomic(Atomic kind, T* address, T value, Site site);
template <typename T>
T compare_and_swap(T* address, T expected, T value, Site site);

template <typename T>
constexpr const char* type_name() {
  return __PRETTY_FUNCTION__;
}

}  // namespace host

class Smem {
 public:
  template <typename T>
  T* take(size_t count, size_t align = 16, host::Site site = host::Site::current()) {
    const size_t begin = align_up(end_, align);
    end_ = begin + count * sizeof(T);
    return static_cast<T*>(host::shared_array(begin, count * sizeof(T), align, host::type_name<T>(), site));
  }

 private:
  size_t end_ = 0;
};

inline void cp_async_16(void* shared, const void* global, host::Site site = host::Site::current()) {
  host::copy_async(shared, global, 16, site);
}
inline void cp_async_16(void* shared, const void* global, int bytes, host::Site site = host::Site::current()) {
  host::copy_async(shared, global, bytes, site);
}
inline void cp_async_commit() { host::commit_copies(); }
template <int pending>
void cp_async_wait() {
  host::wait_copies(pending);
}

inline uint4 load_16B(const void* from, host::Site site = host::Site::current()) { return host::load_16B(from, site); }
inline void store_16B(void* to, uint4 value, host::Site site = host::Site::current()) {
  host::store_16B(to, value, site);
}
inline void store_16B_streaming(void* to, uint4 value, host::Site site = host::Site::current()) {
  host::store_16B(to, value, site);
}

}  // namespace simt

template <typename T>
T __ldg(const T* address) {
  return *address;
}

#define SIMT_ATOMIC(name, T, kind)                                                          \
  inline T name(T* address, T value, simt::host::Site site = simt::host::Site::current()) { \
    return simt::host::atomic(simt::host::Atomic::kind, address, value, site);              \
  }
#define SIMT_ATOMICS(T)                                                                                      \
  SIMT_ATOMIC(atomicAdd, T, add)                                                                             \
  SIMT_ATOMIC(atomicMin, T, min)                                                                             \
  SIMT_ATOMIC(atomicMax, T, max)                                                                             \
  SIMT_ATOMIC(atomicExch, T, exchange)                                                                       \
  SIMT_ATOMIC(atomicAnd, T, bit_and)                                                                         \
  SIMT_ATOMIC(atomicOr, T, bit_or)                                                                           \
  inline T atomicCAS(T* address, T expected, T value, simt::host::Site site = simt::host::Site::current()) { \
    return simt::host::compare_and_swap(address, expected, value, site);                                     \
  }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
SIMT_ATOMIC(atomicAdd, float, add)
SIMT_ATOMIC(atomicAdd, double, add)
#undef SIMT_ATOMICS
#undef SIMT_ATOMIC
