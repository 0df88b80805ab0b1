// y = x with every 32 numbers turned by one, `rounds` times: the lanes of a warp exchange through shared memory.
#pragma once

#include "cuda/port.cuh"

namespace artsy::cuda {

__global__ void __launch_bounds__(64) rotate_kernel(const float* x, float* y, int rounds) {
  ARTSY_SHARED(float, tile, [2][32]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t i = int64_t(blockIdx.x) * 64 + threadIdx.x;
  float mine = x[i];
  for (int round = 0; round < rounds; ++round) {
    tile[warp][lane] = mine;
    __syncwarp();
    mine = tile[warp][(lane + 1) % 32];
    __syncwarp();
  }
  y[i] = mine;
}

inline void rotate(const float* x, float* y, int64_t n, int rounds, cudaStream_t stream) {
  ARTSY_LAUNCH(rotate_kernel, n / 64, 64, 0, stream, x, y, rounds);
}

}  // namespace artsy::cuda
