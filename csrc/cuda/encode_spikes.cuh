// encode_spikes on a GPU: a thread makes all spikes of N neighbouring elements, from random numbers that depend on the
// element's index alone, or at the one step of its latency.
#pragma once

#include "../philox.h"
#include "numbers.cuh"

namespace artsy::cuda {

namespace encode {

constexpr int kThreads = 128;

struct Code {
  bool latency;
  int64_t offset;
  PhiloxKey key;
};

// ⌊(1 − x)(T − 1) + ½⌋, rounded at every operation as the definition does it; -1 where there is no spike.
template <class Real>
__device__ __forceinline__ int64_t latency_of(Real x, int64_t steps) {
  const Real step = floor(sum(product(Real(1) - min(x, Real(1)), Real(steps - 1)), Real(0.5)));
  return x > 0 && step < Real(steps) ? int64_t(step) : -1;
}

}  // namespace encode

// x [size] -> spikes [steps, size]; a spike is the word `one`.
// Machine code where N != 1: 128-bit loads
template <class Real, class Word, int N>
__global__ void __launch_bounds__(encode::kThreads)
    encode_spikes_kernel(const Real* __restrict__ x, int64_t size, int64_t steps, encode::Code code, Word one,
                         Word* __restrict__ spikes) {
  using namespace encode;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= size) return;
  const auto rate = load<Real, N>(x + i);
  int64_t latency[N];
#pragma unroll
  for (int n = 0; n < N; ++n) latency[n] = code.latency ? latency_of(rate.number[n], steps) : -1;
#pragma unroll 1
  for (int64_t block = 0; 4 * block < steps; ++block) {
    uint32_t word[4][N];
    if (!code.latency) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint64_t index = uint64_t(i + n) + uint64_t(code.offset);
        word[0][n] = uint32_t(index);
        word[1][n] = uint32_t(index >> 32);
        word[2][n] = uint32_t(block);
        word[3][n] = 0;
      }
      philox(word, code.key);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t t = 4 * block + k;
      if (t >= steps) break;
      Pack<Word, N> row;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const bool fires = code.latency ? t == latency[n] : Real(float(word[k][n] >> 8) * 0x1p-24f) < rate.number[n];
        row.number[n] = fires ? one : Word(0);
      }
      store(spikes + t * size + i, row);
    }
  }
}

// --- What the launcher calls. Every size may be 0.

template <class Real, class Word>
void encode_spikes(const Real* x, int64_t size, int64_t steps, bool latency, int64_t seed, int64_t offset, Word one,
                   Word* spikes, cudaStream_t stream) {
  using namespace encode;
  constexpr int N = 4;
  if (size == 0 || steps == 0) return;
  const Code code = {latency, offset, {uint32_t(uint64_t(seed)), uint32_t(uint64_t(seed) >> 32)}};
  if (size % N == 0 && are_aligned(N * sizeof(Real), x) && are_aligned(N * sizeof(Word), spikes))
    ARTSY_LAUNCH((encode_spikes_kernel<Real, Word, N>), ceil_div(size / N, kThreads), kThreads, 0, stream, x, size,
                 steps, code, one, spikes);
  else
    ARTSY_LAUNCH((encode_spikes_kernel<Real, Word, 1>), ceil_div(size, kThreads), kThreads, 0, stream, x, size, steps,
                 code, one, spikes);
}

}  // namespace artsy::cuda
