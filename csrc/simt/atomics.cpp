// Atomics: no other thread runs in the middle of one.
#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "machine.h"

namespace simt::host {

namespace {

template <typename T>
T apply(Atomic kind, T old, T value) {
  switch (kind) {
    case Atomic::add:
      if constexpr (std::is_integral_v<T>) {
        using U = std::make_unsigned_t<T>;
        return T(U(old) + U(value));  // wraps
      } else {
        return old + value;
      }
    case Atomic::min:
      return std::min(old, value);
    case Atomic::max:
      return std::max(old, value);
    case Atomic::exchange:
      return value;
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) return kind == Atomic::bit_and ? old & value : old | value;
  return old;
}

template <typename T>
void check(T* address, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) fail("atomic: the address is not aligned", site);
  machine().may_preempt();
  checks::access(address, sizeof(T), checks::Access::atomic, site);
}

}  // namespace

template <typename T>
T atomic(Atomic kind, T* address, T value, Site site) {
  const Inside inside;
  check(address, site);
  const T old = *address;
  *address = apply(kind, old, value);
  return old;
}

template <typename T>
T compare_and_swap(T* address, T expected, T value, Site site) {
  const Inside inside;
  check(address, site);
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

template int atomic(Atomic, int*, int, Site);
template unsigned atomic(Atomic, unsigned*, unsigned, Site);
template unsigned long long atomic(Atomic, unsigned long long*, unsigned long long, Site);
template float atomic(Atomic, float*, float, Site);
template double atomic(Atomic, double*, double, Site);
template int compare_and_swap(int*, int, int, Site);
template unsigned compare_and_swap(unsigned*, unsigned, unsigned, Site);
template unsigned long long compare_and_swap(unsigned long long*, unsigned long long, unsigned long long, Site);

}  // namespace simt::host
