// float16 and bfloat16 as stored, and their exact widening to float32: plain integer code, vectorised by the compiler.
#pragma once
#include <cstdint>
#include <cstring>

#include "math/hd.h"

namespace graceful_fast {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

GF_HD inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
GF_HD inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

GF_HD inline double widen(double x) { return x; }
GF_HD inline float widen(float x) { return x; }
GF_HD inline float widen(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
GF_HD inline float widen(Half x) {
  // Exponent and mantissa land 112 exponents too low; multiplying by 2^112 is exact and mends subnormals with them.
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  const bool special = (x.bits & 0x7c00) == 0x7c00;  // infinity, NaN
  // Infinity and NaN stay what they are; the product makes a NaN quiet, as the machines' own conversions do.
  return from_bits(sign | to_bits(from_bits(special ? rest | 0x7f800000 : rest) * 0x1p112f));
}

// Rounding to nearest, ties to even, overload chosen by the destination.
GF_HD inline void narrow(double from, double& to) { to = from; }
GF_HD inline void narrow(float from, float& to) { to = from; }
GF_HD inline void narrow(float from, BFloat16& to) {
  const uint32_t bits = to_bits(from);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  to.bits = uint16_t(nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
GF_HD inline void narrow(float from, Half& to) {
  const uint32_t bits = to_bits(from), magnitude = bits & 0x7fffffff;
  // Below 2^-14 adding 0.5 leaves exactly the subnormal's bits in the mantissa, rounded by the addition.
  const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  to.bits = uint16_t((bits >> 16 & 0x8000) | (magnitude >= (143u << 23) ? special : finite));
}

}  // namespace
}  // namespace graceful_fast
