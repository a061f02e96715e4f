// Vectors and single numbers under the same names, so that float64 logits run the kernels' source with one lane.
// Lanes accumulate in float32 for kGroup vectors, then in float64.
#pragma once
#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/convert.h"
#include "cpu/exp.h"
#include "cpu/simd.h"

namespace graceful_fast {
namespace {

constexpr int kGroup = 16;  // vectors summed in float32 before widening: at most 16 roundings a lane

template <class V>
using ScalarOf = std::conditional_t<std::is_same_v<V, double>, double, float>;
template <class V>
constexpr int kLanes = sizeof(V) / sizeof(ScalarOf<V>);
template <class V>
using MaskOf = decltype(V{} < V{});

template <class V>
GF_INLINE V splat(double x) {
  return V{} + ScalarOf<V>(x);
}
template <class V>
GF_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
GF_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
// Halves of a vector by shuffles, not memory: the compiler would keep the vector there through the whole loop.
template <int first, class V, int... i>
GF_INLINE auto lanes_from(V v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (first + i)...);
}
template <int count, class V>
GF_INLINE auto lower(V v) {
  return lanes_from<0>(v, std::make_integer_sequence<int, count>{});
}
template <int count, class V>
GF_INLINE auto upper(V v) {
  return lanes_from<count>(v, std::make_integer_sequence<int, count>{});
}
// The lanes of a vector of T joined by halves, in registers as far as these are wider than 16 bytes.
template <class T, class V, class F>
GF_INLINE T fold(V v, F&& join) {
  constexpr int kHalf = sizeof(V) / sizeof(T) / 2;
  if constexpr (sizeof(V) > 16) {
    return fold<T>(join(lower<kHalf>(v), upper<kHalf>(v)), join);
  }
  T lanes[sizeof(V) / sizeof(T)];
  store(lanes, v);
  for (int width = kHalf; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = join(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}
template <class V>
GF_INLINE double fold_max(V v) {
  return fold<ScalarOf<V>>(v, [](auto a, auto b) { return b > a ? b : a; });
}
template <class V>
GF_INLINE double fold_min(V v) {
  return fold<ScalarOf<V>>(v, [](auto a, auto b) { return b < a ? b : a; });
}

// A sum in float64 lanes that float32 lanes are added to.
template <class V>
struct Sum {
  static constexpr int kHalf = kLanes<V> / 2;
  using Wide = Lanes<double, kHalf>;
  Wide low{}, high{};
  GF_INLINE void add(V part) {
    low += __builtin_convertvector(lower<kHalf>(part), Wide);
    high += __builtin_convertvector(upper<kHalf>(part), Wide);
  }
  GF_INLINE double value() const {
    return fold<double>(low + high, [](auto a, auto b) { return a + b; });
  }
};
template <>
struct Sum<double> {
  double total = 0;
  GF_INLINE void add(double part) { total += part; }
  double value() const { return total; }
};

template <bool b>
using Flag = std::bool_constant<b>;

// body(j, Flag<true>) for whole vectors, body(j, Flag<false>) for a last one of fewer lanes; after_group() every
// kGroup. Each is called at one place, so that it is inlined and the sums stay in registers.
template <class V, class Body, class AfterGroup>
GF_INLINE void for_vectors(int n, Body&& body, AfterGroup&& after_group) {
  const int whole = n - n % kLanes<V>;
  for (int j = 0; j < n;) {
    if (j < whole) {
      for (const int end = std::min(whole, j + kGroup * kLanes<V>); j < end; j += kLanes<V>) body(j, Flag<true>{});
    } else {
      body(j, Flag<false>{});
      j = n;
    }
    after_group();
  }
}
template <class V, class Body>
GF_INLINE void for_vectors(int n, Body&& body) {
  for_vectors<V>(n, body, [] {});
}

#if defined(GF_AVX512)
GF_INLINE __mmask16 first_lanes(int count) { return __mmask16((1u << count) - 1); }
#endif

// A vector of the block's type or, widened, of half types.
template <class V, class T>
GF_INLINE V load_wide(const T* from) {
  if constexpr (sizeof(T) == 2) {
    return widened(load<Shorts>(from), T{});
  } else {
    return load<V>(from);
  }
}
// Lanes past the end of a block repeat its last class, so that maxima hold; `kept` keeps them out of sums.
template <class V, bool whole, class T>
GF_INLINE V get(const T* block, int j, int n) {
  if constexpr (whole) return load_wide<V>(block + j);
#if defined(GF_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    return (V)_mm512_mask_loadu_ps((__m512)splat<V>(block[n - 1]), first_lanes(n - j), block + j);
  }
  if constexpr (sizeof(T) == 2) {
    const __m256i last = _mm256_set1_epi16(int16_t(block[n - 1].bits));
    return widened((Shorts)_mm256_mask_loadu_epi16(last, first_lanes(n - j), block + j), T{});
  }
#endif
  T lanes[kLanes<V>];
  for (int i = 0; i < kLanes<V>; ++i) lanes[i] = block[std::min(j + i, n - 1)];
  return load_wide<V>(lanes);
}
// The same, widened into `wide` for later passes if it is of a half type. `wide` has room for whole vectors.
template <class V, bool whole, class T, class S>
GF_INLINE V get(const T* block, int j, int n, S* wide) {
  const V v = get<V, whole>(block, j, n);
  if constexpr (!std::is_same_v<T, S>) store(wide + j, v);
  return v;
}
template <class V, bool whole>
GF_INLINE V kept(V value, int j, int n) {
  if constexpr (whole) return value;
  V index;
  ScalarOf<V> lanes[kLanes<V>];
  for (int i = 0; i < kLanes<V>; ++i) lanes[i] = ScalarOf<V>(i);
  index = load<V>(lanes);
  return index < splat<V>(n - j) ? value : V{};
}
// Rounded to the block's type. streamed: past the caches, to an address that is a multiple of what is stored at once.
template <class V, bool whole, class T>
GF_INLINE void put(T* block, V value, int j, int n, bool streamed = false) {
  if constexpr (std::is_same_v<V, double>) {
    narrow(decltype(widen(T{}))(value), block[j]);
  } else if constexpr (whole && sizeof(T) == 2) {
    if (streamed) return stream(block + j, narrowed(value, T{}));
    store(block + j, narrowed(value, T{}));
  } else if constexpr (whole) {
    if (streamed) return stream(block + j, value);
    store(block + j, value);
  } else {
#if defined(GF_AVX512)
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(block + j, first_lanes(n - j), (__m512)value);
    if constexpr (sizeof(T) == 2) {
      return _mm256_mask_storeu_epi16(block + j, first_lanes(n - j), (__m256i)narrowed(value, T{}));
    }
#endif
    T lanes[kLanes<V>];
    if constexpr (sizeof(T) == 2) {
      store(lanes, narrowed(value, T{}));
    } else {
      store(lanes, value);
    }
    std::copy_n(lanes, n - j, block + j);
  }
}

}  // namespace
}  // namespace graceful_fast
