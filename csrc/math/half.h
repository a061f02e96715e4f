// float16 and bfloat16 as stored, and their exact widening to float32: plain integer code, vectorised by the compiler.
#pragma once
#include <cstdint>
#include <cstring>

namespace graceful_fast {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
inline float widen(Half x) {
  // Exponent and mantissa land 112 exponents too low; multiplying by 2^112 is exact and mends subnormals with them.
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  const bool special = (x.bits & 0x7c00) == 0x7c00;  // infinity, NaN
  const uint32_t normal = to_bits(from_bits(rest) * 0x1p112f);
  return from_bits(sign | (special ? rest | 0x7f800000 : normal));
}

}  // namespace
}  // namespace graceful_fast
