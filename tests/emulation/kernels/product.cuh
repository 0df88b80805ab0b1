// c [M, N] = a [M, K] · b [N, K]ᵀ in bfloat16 with fp32 sums: a warp makes 16 by 8 of it, its tiles of a and b come by
// cp.async, one ahead. M, N, K are multiples of 16, 8, 16.
#pragma once

#include "cuda/ptx.cuh"

namespace artsy::cuda {

// Machine code: tensor cores, asynchronous copies
__global__ void __launch_bounds__(32)
    product_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int64_t N, int64_t K) {
  ARTSY_SHARED(uint4, of_a, [2][32]);  // two tiles of 16 rows of 16 numbers
  ARTSY_SHARED(uint4, of_b, [2][16]);
  const int lane = int(threadIdx.x), group = lane / 4, in_group = lane % 4;
  const int64_t row = int64_t(blockIdx.y) * 16, column = int64_t(blockIdx.x) * 8;
  const auto fetch = [&](int stage, int64_t k) {
    const int64_t part = k + lane % 2 * 8;
    cp_async_16(&of_a[stage][lane], a + (row + lane / 2) * K + part, true);
    if (lane < 16) cp_async_16(&of_b[stage][lane], b + (column + lane / 2) * K + part, true);
    cp_async_commit();
  };

  float sums[4] = {};
  fetch(0, 0);
  for (int64_t k = 0; k < K; k += 16) {
    const int stage = int(k / 16 % 2);
    if (k + 16 < K) {
      fetch(stage ^ 1, k + 16);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncwarp();  // the lanes see each other's copies
    const auto* const words_a = reinterpret_cast<const uint32_t*>(of_a[stage]);
    const auto* const words_b = reinterpret_cast<const uint32_t*>(of_b[stage]);
    const uint32_t fragment_a[4] = {words_a[group * 8 + in_group], words_a[(group + 8) * 8 + in_group],
                                    words_a[group * 8 + in_group + 4], words_a[(group + 8) * 8 + in_group + 4]};
    const uint32_t fragment_b[2] = {words_b[group * 8 + in_group], words_b[group * 8 + in_group + 4]};
    mma_m16n8k16_bf16(sums, fragment_a, fragment_b);
    __syncwarp();  // all have read before the next round writes here
  }
  for (int i = 0; i < 4; ++i) c[(row + group + i / 2 * 8) * N + column + in_group * 2 + i % 2] = sums[i];
}

inline void product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int64_t M, int64_t N, int64_t K,
                    cudaStream_t stream) {
  ARTSY_LAUNCH(product_kernel, Extent(N / 8, M / 16), 32, 0, stream, a, b, c, N, K);
}

}  // namespace artsy::cuda
