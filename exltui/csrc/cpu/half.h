// 16-bit floats in plain integer arithmetic: the portable kernels, and the odd end of every row. Static: were they shared, the linker
// might give the portable kernels a copy that was compiled for AVX-512.
#pragma once

#include <cstdint>
#include <cstring>

namespace exltui {

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
  // The exponent is 112 too small; multiplying by 2^112 puts it right, subnormals included.
  const float value = bits_to_float(rest << 13) * bits_to_float(0x77800000u);
  return bits_to_float(float_to_bits(value) | sign);
}

static inline uint16_t float_to_half(float value) {  // nearest, ties to even
  const uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (rest < 0x38800000u) {  // subnormal: adding 0.5 leaves the mantissa's low bits as the rounded value
    const float shifted = bits_to_float(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (rest >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + odd) >> 13));
}

}  // namespace exltui
