// Numbers as they lie in memory, and the type they are computed in.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace artsy {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// Neighbours: one instruction multiplies two such pairs and adds both products to a float.
struct BFloat16Pair {
  BFloat16 first, second;
};

// The short types are computed in float.
template <class Stored>
using Real = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

inline float to_float(BFloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

inline float to_float(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));  // infinite or NaN
  // The exponent moves from bias 15 to bias 127; multiplication normalises what is subnormal.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// To the nearest, ties to even.
inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline Float16 to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000;
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffff);
  if (value != value) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-14f) {  // subnormal: the sum rounds at the last bit that is left
    const float sum = magnitude + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f)))};
  }
  const uint32_t rounded = std::bit_cast<uint32_t>(magnitude) + 0xfff + (bits >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
}

inline float to_real(float value) { return value; }
inline double to_real(double value) { return value; }
inline float to_real(BFloat16 value) { return to_float(value); }
inline float to_real(Float16 value) { return to_float(value); }

template <class Stored>
inline Stored from_real(Real<Stored> value) {
  if constexpr (std::is_same_v<Stored, BFloat16>)
    return to_bfloat16(value);
  else if constexpr (std::is_same_v<Stored, Float16>)
    return to_float16(value);
  else
    return value;
}

}  // namespace artsy
