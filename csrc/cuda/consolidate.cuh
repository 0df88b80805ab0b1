// consolidate on a GPU: one pass over the weights.
#pragma once

#include "numbers.cuh"

namespace artsy::cuda {

namespace consolidation {

constexpr int kThreads = 128;

// Whether a synapse transmits, after it did or did not so far. A NaN does not.
template <class T>
__device__ __forceinline__ uint8_t transmits(T weight, uint8_t before, T on, T off) {
  return (weight < 0 ? -weight : weight) >= (before ? off : on);
}

}  // namespace consolidation

// Machine code where N != 1: 128-bit loads
template <class T, int N>
__global__ void __launch_bounds__(consolidation::kThreads)
    consolidate_kernel(const T* __restrict__ weight, const uint8_t* __restrict__ functional, int64_t size, T on, T off,
                       uint8_t* __restrict__ result) {
  using namespace consolidation;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= size) return;
  const auto weights = load<T, N>(weight + i);
  const auto before = load<uint8_t, N>(functional + i);
  Pack<uint8_t, N> after;
#pragma unroll
  for (int n = 0; n < N; ++n) after.number[n] = transmits(weights.number[n], before.number[n], on, off);
  store(result + i, after);
}

// --- What the launcher calls. The size may be 0.

template <class T>
void consolidate(const T* weight, const uint8_t* functional, int64_t size, T on, T off, uint8_t* result,
                 cudaStream_t stream) {
  using namespace consolidation;
  constexpr int N = 4;
  if (size == 0) return;
  if (size % N == 0 && are_aligned(N * sizeof(T), weight) && are_aligned(N, functional, result))
    ARTSY_LAUNCH((consolidate_kernel<T, N>), ceil_div(size / N, kThreads), kThreads, 0, stream, weight, functional,
                 size, on, off, result);
  else
    ARTSY_LAUNCH((consolidate_kernel<T, 1>), ceil_div(size, kThreads), kThreads, 0, stream, weight, functional, size,
                 on, off, result);
}

}  // namespace artsy::cuda
