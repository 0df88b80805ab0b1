// __half and __nv_bfloat16 on the CPU: stored in 16 bits, rounded to the nearest (ties to even) after each operation.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace artsy::emulation {

// A binary format of 16 bits: one for the sign, kExponent, and the rest.
template <int kExponent>
struct Float16 {
  uint16_t bits;

  Float16() = default;
  Float16(double value) : bits(round(value)) {}
  Float16(float value) : Float16(double(value)) {}
  Float16(int value) : Float16(double(value)) {}

  operator float() const {
    constexpr int kBias = (1 << (kExponent - 1)) - 1;
    const int exponent = bits >> kFraction & ((1 << kExponent) - 1), fraction = bits & ((1 << kFraction) - 1);
    float magnitude;
    if (exponent == (1 << kExponent) - 1)
      magnitude = fraction ? NAN : INFINITY;
    else if (exponent == 0)
      magnitude = std::ldexp(float(fraction), 1 - kBias - kFraction);
    else
      magnitude = std::ldexp(float(fraction + (1 << kFraction)), exponent - kBias - kFraction);
    return bits >> 15 ? -magnitude : magnitude;
  }

  // Both operands are exact in fp64, and so wide that rounding to fp64 first never changes the result.
  friend Float16 operator+(Float16 a, Float16 b) { return double(float(a)) + double(float(b)); }
  friend Float16 operator-(Float16 a, Float16 b) { return double(float(a)) - double(float(b)); }
  friend Float16 operator*(Float16 a, Float16 b) { return double(float(a)) * double(float(b)); }
  friend Float16 operator/(Float16 a, Float16 b) { return double(float(a)) / double(float(b)); }
  Float16 operator-() const { return from_bits(bits ^ 0x8000); }
  Float16& operator+=(Float16 other) { return *this = *this + other; }
  Float16& operator-=(Float16 other) { return *this = *this - other; }
  Float16& operator*=(Float16 other) { return *this = *this * other; }

  static Float16 from_bits(int bits) {
    Float16 result;
    result.bits = uint16_t(bits);
    return result;
  }

 private:
  static constexpr int kFraction = 15 - kExponent;

  static uint16_t round(double value) {
    constexpr int kBias = (1 << (kExponent - 1)) - 1;
    if (std::isnan(value)) return 0x7fff;
    const int sign = std::signbit(value) ? 0x8000 : 0;
    int exponent;  // of the last bit that is kept; those of the smallest normal number and of all below are the same
    std::frexp(value, &exponent);
    exponent = (exponent > 1 - kBias ? exponent : 2 - kBias) - 1 - kFraction;
    constexpr int kInfinity = ((1 << kExponent) - 1) << kFraction;
    if (value == 0 || std::isinf(value)) return uint16_t(sign | (value == 0 ? 0 : kInfinity));
    // In units of the last bit, 0 to 2^(kFraction+1); the carry of the rounding moves on into the exponent.
    const int units = int(std::nearbyint(std::ldexp(std::fabs(value), -exponent)));
    const int magnitude = ((exponent + kBias + kFraction - 1) << kFraction) + units;
    return uint16_t(sign | (magnitude < kInfinity ? magnitude : kInfinity));
  }
};

// a·b + c with the last bit of fp64 set where that is not exact, so that it can be rounded once more (round to odd).
inline double fma_to_odd(double a, double b, double c) {
  const double product = a * b, sum = product + c, added = sum - product;
  const double error = (product - (sum - added)) + (c - added);
  if (error == 0 || !std::isfinite(sum) || std::bit_cast<uint64_t>(sum) & 1) return sum;
  return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

}  // namespace artsy::emulation

using __half = artsy::emulation::Float16<5>;
using __nv_bfloat16 = artsy::emulation::Float16<8>;
using half = __half;
using nv_bfloat16 = __nv_bfloat16;
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __hfma(__half a, __half b, __half c) {
  return artsy::emulation::fma_to_odd(float(a), float(b), float(c));
}
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return artsy::emulation::fma_to_odd(float(a), float(b), float(c));
}
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
