// combine_routes on a GPU: per sample the (weighted) sum of its pairs' rows, plus base; and its gradient.
//
// A thread adds up 16 bytes of a row (one number where rows are not aligned to 16 bytes) over the pairs of a sample,
// from the lowest sub-network to the highest, in fp32 (fp64 for fp64), and rounds once: the sum of the definition, bit
// for bit. The gradient of y gathers; the gradient of weight is one product of two rows per warp, in fixed order.
#pragma once

#include "numbers.cuh"

namespace artsy::cuda {

namespace combine {

constexpr int kThreads = 128, kWarps = kThreads / 32;

}  // namespace combine

// Machine code where N != 1: 128-bit loads, 128-bit stores
// Machine code: no global atomics, at most 32 registers
template <class T, int N>
__global__ void __launch_bounds__(combine::kThreads)
    combine_routes_kernel(const T* __restrict__ y, const T* __restrict__ weight, const T* __restrict__ base,
                          const int64_t* __restrict__ order, const int64_t* __restrict__ sample_offsets,
                          const bool* __restrict__ overflow, int64_t B, int64_t D, T* __restrict__ out) {
  using namespace combine;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= B * D) return;
  const int64_t b = i / D, d = i - b * D;
  Sum<T> total[N] = {};
  if (base != nullptr) {
    const auto row = load<T, N>(base + i);
#pragma unroll
    for (int n = 0; n < N; ++n) total[n] = widen(row.number[n]);
  }
  const bool lost = *overflow;
  const int64_t stop = lost ? 0 : sample_offsets[b + 1];
#pragma unroll 1
  for (int64_t k = sample_offsets[b]; k < stop; ++k) {
    const int64_t p = order[k];
    const auto row = load<T, N>(y + p * D + d);
    const Sum<T> factor = weight != nullptr ? widen(weight[p]) : Sum<T>(1);
#pragma unroll
    for (int n = 0; n < N; ++n) total[n] = sum(total[n], product(widen(row.number[n]), factor));
  }
  Pack<T, N> result;
#pragma unroll
  for (int n = 0; n < N; ++n) result.number[n] = narrow<T>(lost ? Sum<T>(NAN) : total[n]);
  store<T, N>(out + i, result);
}

// grad_y[p] = weight[p] · grad[sample[p]], 0 for the padding.
// Machine code where N != 1: 128-bit loads, 128-bit stores
// Machine code: no global atomics, at most 32 registers
template <class T, int N>
__global__ void __launch_bounds__(combine::kThreads)
    combine_routes_grad_y_kernel(const T* __restrict__ grad, const T* __restrict__ weight,
                                 const int64_t* __restrict__ sample, const int64_t* __restrict__ used,
                                 const bool* __restrict__ overflow, int64_t P, int64_t D, T* __restrict__ grad_y) {
  using namespace combine;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= P * D) return;
  const int64_t p = i / D, d = i - p * D;
  Pack<T, N> result = {};
  if (p < *used && !*overflow) {
    const auto row = load<T, N>(grad + sample[p] * D + d);
    const Sum<T> factor = weight != nullptr ? widen(weight[p]) : Sum<T>(1);
#pragma unroll
    for (int n = 0; n < N; ++n) result.number[n] = narrow<T>(product(widen(row.number[n]), factor));
  }
  store<T, N>(grad_y + i, result);
}

// grad_weight[p] = y[p] · grad[sample[p]], 0 for the padding; one warp per pair.
// Machine code where N != 1: 128-bit loads
// Machine code: no global atomics, at most 32 registers
template <class T, int N>
__global__ void __launch_bounds__(combine::kThreads)
    combine_routes_grad_weight_kernel(const T* __restrict__ grad, const T* __restrict__ y,
                                      const int64_t* __restrict__ sample, const int64_t* __restrict__ used,
                                      const bool* __restrict__ overflow, int64_t P, int64_t D,
                                      T* __restrict__ grad_weight) {
  using namespace combine;
  const int lane = int(threadIdx.x) % 32;
  const int64_t p = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  Sum<T> total = 0;
  if (p < P && p < *used && !*overflow) {
    const T* const left = y + p * D;
    const T* const right = grad + sample[p] * D;
#pragma unroll 2  // more take more registers than there are: fp64 would spill on sm_90
    for (int64_t d = int64_t(lane) * N; d < D; d += int64_t(32) * N) {
      const auto a = load<T, N>(left + d), b = load<T, N>(right + d);
#pragma unroll
      for (int n = 0; n < N; ++n) total = sum(total, product(widen(a.number[n]), widen(b.number[n])));
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    total = sum(total, __shfl_down_sync(0xffffffffu, total, distance));
  if (lane == 0 && p < P) grad_weight[p] = narrow<T>(total);
}

// --- What the launcher calls. All tensors are contiguous; every size may be 0; absent tensors are nullptr.

namespace combine {

// Whether rows of D numbers, from all of these tensors, can be read 16 bytes at a time.
template <class T, class... Tensors>
bool in_packs(int64_t D, const Tensors*... tensors) {
  return D * int64_t(sizeof(T)) % 16 == 0 && are_aligned(16, tensors...);
}

}  // namespace combine

// out [B, D] from y [P, D], weight [P], base [B, D].
template <class T>
void combine_routes(const T* y, const T* weight, const T* base, const int64_t* order, const int64_t* sample_offsets,
                    const bool* overflow, int64_t B, int64_t D, T* out, cudaStream_t stream) {
  using namespace combine;
  constexpr int N = 16 / sizeof(T);
  if (B * D == 0) return;
  if (in_packs<T>(D, y, base, out))
    ARTSY_LAUNCH((combine_routes_kernel<T, N>), ceil_div(B * D / N, kThreads), kThreads, 0, stream, y, weight, base,
                 order, sample_offsets, overflow, B, D, out);
  else
    ARTSY_LAUNCH((combine_routes_kernel<T, 1>), ceil_div(B * D, kThreads), kThreads, 0, stream, y, weight, base, order,
                 sample_offsets, overflow, B, D, out);
}

// grad_y [P, D] and grad_weight [P] from grad [B, D], nullptr where not asked for. The gradient of base is grad itself,
// 0 where the plan overflowed.
template <class T>
void combine_routes_backward(const T* grad, const T* y, const T* weight, const int64_t* sample, const int64_t* offsets,
                             const bool* overflow, int64_t S, int64_t P, int64_t D, T* grad_y, T* grad_weight,
                             cudaStream_t stream) {
  using namespace combine;
  constexpr int N = 16 / sizeof(T);
  if (P == 0) return;
  if (grad_y != nullptr && D > 0) {
    if (in_packs<T>(D, grad, grad_y))
      ARTSY_LAUNCH((combine_routes_grad_y_kernel<T, N>), ceil_div(P * D / N, kThreads), kThreads, 0, stream, grad,
                   weight, sample, offsets + S, overflow, P, D, grad_y);
    else
      ARTSY_LAUNCH((combine_routes_grad_y_kernel<T, 1>), ceil_div(P * D, kThreads), kThreads, 0, stream, grad, weight,
                   sample, offsets + S, overflow, P, D, grad_y);
  }
  if (grad_weight != nullptr) {
    if (in_packs<T>(D, grad, y))
      ARTSY_LAUNCH((combine_routes_grad_weight_kernel<T, N>), ceil_div(P, kWarps), kThreads, 0, stream, grad, y, sample,
                   offsets + S, overflow, P, D, grad_weight);
    else
      ARTSY_LAUNCH((combine_routes_grad_weight_kernel<T, 1>), ceil_div(P, kWarps), kThreads, 0, stream, grad, y, sample,
                   offsets + S, overflow, P, D, grad_weight);
  }
}

}  // namespace artsy::cuda
