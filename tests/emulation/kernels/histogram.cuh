// counts [bins] of x [n], each block's in shared memory first.
#pragma once

#include "cuda/port.cuh"

namespace artsy::cuda {

__global__ void __launch_bounds__(64) histogram_kernel(const int* x, int64_t n, int* counts, int bins) {
  ARTSY_DYNAMIC_SHARED(int, of_block);
  for (int bin = int(threadIdx.x); bin < bins; bin += int(blockDim.x)) of_block[bin] = 0;
  __syncthreads();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&of_block[x[i]], 1);
  __syncthreads();
  for (int bin = int(threadIdx.x); bin < bins; bin += int(blockDim.x)) atomicAdd(&counts[bin], of_block[bin]);
}

inline void histogram(const int* x, int64_t n, int* counts, int bins, cudaStream_t stream) {
  ARTSY_LAUNCH(histogram_kernel, ceil_div(n, 64), 64, bins * int64_t(sizeof(int)), stream, x, n, counts, bins);
}

}  // namespace artsy::cuda
