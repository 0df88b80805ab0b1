// The part of CUDA C++ that our kernels use, for a host compiler; runtime.h runs them. What is not here does not
// compile off a GPU: __shared__ (use ARTSY_SHARED, which knows the bounds), __activemask, __threadfence.
#pragma once

#include <algorithm>
#include <cmath>

#include "float16.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define ARTSY_SHARED(type, name, ...)                                                                                 \
  typedef type name##_type __VA_ARGS__;                                                                               \
  static constexpr char name##_key = 0;                                                                               \
  name##_type& name = *reinterpret_cast<name##_type*>(                                                                \
      ::artsy::emulation::shared_array(&name##_key, sizeof(name##_type), std::is_integral_v<type> ? sizeof(type) : 8, \
                                       ::artsy::emulation::Location::current())                                       \
          .data)
#define ARTSY_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(::artsy::emulation::machine.dynamic)

#define threadIdx (::artsy::emulation::machine.current->index)
#define blockIdx (::artsy::emulation::machine.block_index)
#define blockDim (::artsy::emulation::machine.block)
#define gridDim (::artsy::emulation::machine.grid)

using cudaStream_t = struct CUstream_st*;

// --- Vectors, aligned as on the device: UndefinedBehaviorSanitizer checks it at each access.

#define ARTSY_VECTOR(type, name)                                                          \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                \
  struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
ARTSY_VECTOR(unsigned char, uchar)
ARTSY_VECTOR(short, short)
ARTSY_VECTOR(int, int)
ARTSY_VECTOR(unsigned, uint)
ARTSY_VECTOR(long long, longlong)
ARTSY_VECTOR(float, float)
ARTSY_VECTOR(double, double)
#undef ARTSY_VECTOR

// --- Numbers

using std::max;
using std::min;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
template <class T>
T __ldg(const T* from) {
  return *from;
}

// --- Barriers, votes, shuffles. The last argument of each is where it stands in the kernel.

namespace artsy::emulation {
constexpr unsigned kAllLanes = 0xffffffffu;
}
#define ARTSY_AT ::artsy::emulation::Location at = ::artsy::emulation::Location::current()
#define ARTSY_BARRIER(kind, given) ::artsy::emulation::barrier(::artsy::emulation::Barrier::kind, given, at)
#define ARTSY_EXCHANGE(kind, mask, given) \
  ::artsy::emulation::exchange(::artsy::emulation::Exchange::kind, mask, given, 0, 32, at)

inline void __syncthreads(ARTSY_AT) { ARTSY_BARRIER(plain, 0); }
inline int __syncthreads_count(int given, ARTSY_AT) { return ARTSY_BARRIER(count, given); }
inline int __syncthreads_and(int given, ARTSY_AT) { return ARTSY_BARRIER(all, given); }
inline int __syncthreads_or(int given, ARTSY_AT) { return ARTSY_BARRIER(any, given); }
inline void __syncwarp(unsigned mask = artsy::emulation::kAllLanes, ARTSY_AT) { ARTSY_EXCHANGE(sync, mask, 0); }
inline unsigned __ballot_sync(unsigned mask, int given, ARTSY_AT) {
  return unsigned(ARTSY_EXCHANGE(ballot, mask, given != 0));
}
inline int __any_sync(unsigned mask, int given, ARTSY_AT) { return ARTSY_EXCHANGE(ballot, mask, given != 0) != 0; }
inline int __all_sync(unsigned mask, int given, ARTSY_AT) { return ARTSY_EXCHANGE(ballot, mask, given == 0) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T given, ARTSY_AT) {
  return unsigned(ARTSY_EXCHANGE(match, mask, artsy::emulation::bits_of(given)));
}
#define ARTSY_SHUFFLE(name, kind, argument)                                                                    \
  template <class T>                                                                                           \
  T name(unsigned mask, T value, argument, int width = 32, ARTSY_AT) {                                         \
    return ::artsy::emulation::shuffle(::artsy::emulation::Exchange::kind, mask, value, int(lane), width, at); \
  }
ARTSY_SHUFFLE(__shfl_sync, index, int lane)
ARTSY_SHUFFLE(__shfl_up_sync, up, unsigned lane)
ARTSY_SHUFFLE(__shfl_down_sync, down, unsigned lane)
ARTSY_SHUFFLE(__shfl_xor_sync, exclusive_or, int lane)
#undef ARTSY_SHUFFLE
#undef ARTSY_EXCHANGE
#undef ARTSY_BARRIER

// --- Atomics: they order nothing but themselves, as on the device.

namespace artsy::emulation {

template <class T, class Change>
T atomically(T* address, Change change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are of 4 or 8 bytes");
  using Bits [[gnu::may_alias]] = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  auto* const bits = reinterpret_cast<Bits*>(address);
  auto old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    T value, next;
    memcpy(&value, &old, sizeof value);
    next = change(value);
    auto wanted = old;
    memcpy(&wanted, &next, sizeof wanted);
    if (__atomic_compare_exchange_n(bits, &old, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return value;
  }
}

}  // namespace artsy::emulation

#define ARTSY_ATOMIC(name, expression)                                                        \
  template <class T>                                                                          \
  T name(T* address, std::type_identity_t<T> value) {                                         \
    return ::artsy::emulation::atomically(address, [value](T old) { return T(expression); }); \
  }
ARTSY_ATOMIC(atomicMin, value < old ? value : old)
ARTSY_ATOMIC(atomicMax, value > old ? value : old)
ARTSY_ATOMIC(atomicExch, ((void)old, value))
ARTSY_ATOMIC(atomicAnd, old& value)
ARTSY_ATOMIC(atomicOr, old | value)
#undef ARTSY_ATOMIC
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return artsy::emulation::atomically(address, [value](T old) {
    if constexpr (std::is_integral_v<T>)
      return T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value));  // wraps around
    else
      return old + value;
  });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return artsy::emulation::atomically(address, [=](T old) { return old == expected ? value : old; });
}

// --- The twins of ptx.cuh

namespace artsy::emulation {

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Location at) {
  const Fragments fragments = {c, a, b, [](uint16_t bits) { return float(T::from_bits(bits)); }};
  exchange(Exchange::product, kAllLanes, reinterpret_cast<uint64_t>(&fragments), 0, 32, at);
}

}  // namespace artsy::emulation
