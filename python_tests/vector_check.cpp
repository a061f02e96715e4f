// Checks csrc/cpu/exp.h on a dense sample and csrc/cpu/convert.h against math/half.h: every bit pattern when widening,
// a dense sample and all edges when narrowing. For test_kernels.py; prints what differs, exit code 1.
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <limits>

#include "cpu/convert.h"
#include "cpu/exp.h"
#include "cpu/lanes.h"
#include "math/row_statistics.h"

using namespace graceful_fast;

namespace {

int failures = 0;

void fail(const char* what, uint32_t bits) {
  if (++failures < 20) std::printf("%s: wrong for %08x\n", what, unsigned(bits));
}

float exponential_of(float x) {
  float lanes[kFloats];
  store(lanes, exponential(Floats{} + x));
  return lanes[kFloats - 1];
}

void check_exponential() {
  constexpr uint32_t kStep = 257 * kFloats;  // odd: all low bits are seen
  for (const float end : {88.0f, -87.0f}) {
    const uint32_t sign = to_bits(end) & 0x80000000;
    for (uint32_t at = 0; at <= (to_bits(end) & 0x7fffffff) - kStep; at += kStep) {
      float x[kFloats], y[kFloats];
      for (int i = 0; i < kFloats; ++i) x[i] = from_bits(sign | (at + 257 * i));
      store(y, exponential(load<Floats>(x)));
      for (int i = 0; i < kFloats; ++i) {
        const double exact = std::exp(double(x[i]));
        if (!(std::fabs(y[i] - exact) <= 1.5 * 0x1p-24 * exact)) fail("exponential", to_bits(x[i]));
      }
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {-infinity, -88.0f, -1e30f}) {
    if (exponential_of(x) != 0) fail("exponential", to_bits(x));
  }
  for (const float x : {0.0f, -0.0f}) {
    if (exponential_of(x) != 1) fail("exponential", to_bits(x));
  }
  for (const uint32_t nan : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu}) {
    if (!std::isnan(exponential_of(from_bits(nan)))) fail("exponential", nan);
  }
}

// Exponents x / T within the polynomials' range, for temperatures up to both ends of what the kernels use.
template <bool calm>
void check_small_growth(double inverse, double end) {
  const SmallGrowth<float, calm> growth(inverse);
  for (int i = -100000; i <= 100000; ++i) {
    const float x = float(i * (end * 1e-5) / inverse);
    const double d = x * inverse;
    float lanes[kFloats];
    store(lanes, growth.minus(Floats{} + x, 0));
    if (!(std::fabs(lanes[0] - std::expm1(d)) <= 3 * 0x1p-24 * std::fabs(std::expm1(d)))) fail("minus", to_bits(x));
    store(lanes, growth.add_bent(Floats{} + 1, Floats{} + x, Floats{}));
    const double bent = SmallGrowth<double, calm>(inverse).add_bent(1, x, 0);
    if (!(std::fabs(lanes[0] - bent) <= 5 * 0x1p-24 * bent)) fail("bent", to_bits(x));
  }
}

void check_small_exponents() {
  for (const double inverse : {1.0, 0.01, 0x1p-10, 0x1p10, 1 / 3.0}) {
    check_small_growth<false>(inverse, kSmall);
    check_small_growth<true>(inverse, kCalm);
    const SmallExponential<float> exponential_of(3, inverse);
    for (int i = 0; i <= 100000; ++i) {
      const float x = float(i * (kCalmExponent * -1e-5) / inverse);
      const double exact = 3 * std::exp(x * inverse);
      float lanes[kFloats];
      store(lanes, exponential_of(Floats{} + x));
      if (!(std::fabs(lanes[0] - exact) <= 2.5 * 0x1p-24 * exact)) fail("small", to_bits(x));
    }
  }
}

constexpr int kMany = 1023;  // not a multiple of any width: the tail is checked as well

template <class T>
void check_narrow(const uint32_t* bits, const char* name) {
  static float from[kMany];
  static T to[kMany];
  for (int j = 0; j < kMany; ++j) from[j] = from_bits(bits[j]);
  for_vectors<Floats>(
      kMany, [&](int j, auto whole) { put<Floats, whole>(to, get<Floats, whole>(from, j, kMany), j, kMany); });
  for (int j = 0; j < kMany; ++j) {
    T expected;
    narrow(from[j], expected);
    if (to[j].bits != expected.bits) fail(name, bits[j]);
  }
}

template <class T>
void check_conversions(const char* name) {
  static T from[65536];
  static float to[65536];
  for (int i = 0; i < 65536; ++i) from[i].bits = uint16_t(i);
  for (const int n : {0, 1, 7, 65535, 65536}) {
    widen_block(from, n, to);
    for (int i = 0; i < n; ++i) {
      if (to_bits(to[i]) != to_bits(widen(from[i]))) fail(name, i);
    }
    if (n == 0) continue;
    for_vectors<Floats>(n, [&](int j, auto whole) { put<Floats, whole>(to, get<Floats, whole>(from, j, n), j, n); });
    for (int i = 0; i < n; ++i) {
      if (to_bits(to[i]) != to_bits(widen(from[i]))) fail(name, i);
    }
  }
  static uint32_t bits[kMany];
  int n = 0;
  const auto see = [&](uint32_t pattern) {
    bits[n++] = pattern;
    if (n == kMany) check_narrow<T>(bits, name), n = 0;
  };
  for (uint64_t at = 0; at < 1ull << 32; at += GF_NARROW_STEP) see(uint32_t(at));
  for (uint32_t high = 0; high < 1 << 19; ++high) {  // about every tie of either type
    for (const uint32_t low : {~0u, 0u, 1u}) see((high << 13 | 0x1000) + low), see((high << 13) + low);
  }
  while (n != 0) see(0x7f800001);
}

}  // namespace

int main() {
  check_exponential();
  check_small_exponents();
  check_conversions<BFloat16>("bfloat16");
  check_conversions<Half>("float16");
  std::printf("%d failures\n", failures);
  return failures != 0;
}
