// Numbers as kernels read, compute and write them.
#pragma once

#include <type_traits>

#include "port.cuh"

namespace artsy::cuda {

// What a kernel computes in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(Sum<T> x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

// A product and a sum that no compiler joins into one: the definition rounds both.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }

// N neighbouring numbers, read and written at once.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T number[N];
};

template <class T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <class T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Whether all of these addresses are multiples of that many bytes; nullptr is.
template <class... Tensors>
bool are_aligned(int64_t bytes, const Tensors*... tensors) {
  return ((reinterpret_cast<uintptr_t>(tensors) % uintptr_t(bytes) == 0) && ...);
}

}  // namespace artsy::cuda
