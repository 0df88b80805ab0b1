// sums [n]: of the `length` numbers that lie `stride` apart in the ring x [size], segment after segment; a warp each.
#pragma once

#include "cuda/port.cuh"

namespace artsy::cuda {

__global__ void __launch_bounds__(64)
    segments_kernel(const float* x, int64_t size, int64_t stride, int length, float* sums, int64_t n) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t segment = int64_t(blockIdx.x) * 2 + int(threadIdx.x) / 32;
  float sum = 0;
  for (int i = lane; i < length; i += 32)
    if (segment < n) sum += x[(segment * length + i) * stride % size];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
  if (lane == 0 && segment < n) sums[segment] = sum;
}

inline void segments(const float* x, int64_t size, int64_t stride, int length, float* sums, int64_t n,
                     cudaStream_t stream) {
  ARTSY_LAUNCH(segments_kernel, ceil_div(n, 2), 64, 0, stream, x, size, stride, length, sums, n);
}

}  // namespace artsy::cuda
