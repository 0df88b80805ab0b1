// What the gate must see: each kernel breaks one rule.
#include <cstdint>

// Machine code: 128-bit loads, 128-bit stores
__global__ void one_by_one_kernel(const float* __restrict__ x, float* __restrict__ out, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + 1;
}

// Machine code: no global atomics, at most 4 registers
__global__ void in_any_order_kernel(const float* __restrict__ x, float* __restrict__ out) {
  atomicAdd(out, x[threadIdx.x]);
}

__global__ void array_in_local_memory_kernel(const float* __restrict__ x, float* __restrict__ out, int k) {
  float numbers[32] = {};
  for (int i = 0; i < 32; ++i) numbers[i * k % 32] += x[i * blockDim.x + threadIdx.x];
  out[threadIdx.x] = numbers[(k + threadIdx.x) % 32];
}

// 64 numbers in the 32 registers that two blocks of 1024 threads leave to each.
__global__ void __launch_bounds__(1024, 2) spilling_kernel(float* __restrict__ x) {
  float numbers[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) numbers[i] = x[i * blockDim.x + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 7 % 64 * blockDim.x + threadIdx.x] = numbers[i] * numbers[(i + 13) % 64];
}
