// Each lane writes down what a primitive gave it: test_primitives.py compares with CUDA's own words.
#pragma once

#include "cuda/port.cuh"
#include "cuda/ptx.cuh"

namespace artsy::cuda {

__global__ void shuffle_kernel(const int64_t* given, int64_t* received, int kind, int argument, int width) {
  const int i = int(threadIdx.x);
  if (kind == 0) received[i] = __shfl_sync(0xffffffffu, given[i], argument, width);
  if (kind == 1) received[i] = __shfl_up_sync(0xffffffffu, given[i], argument, width);
  if (kind == 2) received[i] = __shfl_down_sync(0xffffffffu, given[i], argument, width);
  if (kind == 3) received[i] = __shfl_xor_sync(0xffffffffu, given[i], argument, width);
}

// The lanes of `mask` vote among themselves, the others among theirs. ballots [threads], and any, all, match [threads,
// 3].
__global__ void vote_kernel(const int* given, uint32_t mask, uint32_t* ballots, uint32_t* answers) {
  const int i = int(threadIdx.x);
  const uint32_t mine = mask >> i % 32 & 1 ? mask : ~mask;
  ballots[i] = __ballot_sync(mine, given[i]);
  answers[3 * i] = uint32_t(__any_sync(mine, given[i]));
  answers[3 * i + 1] = uint32_t(__all_sync(mine, given[i]));
  answers[3 * i + 2] = __match_any_sync(mine, given[i]);
}

__global__ void barrier_kernel(const int* given, int* answers) {
  const int i = int(threadIdx.x) + int(blockDim.x) * (int(threadIdx.y) + int(blockDim.y) * int(threadIdx.z));
  answers[3 * i] = __syncthreads_count(given[i]);
  answers[3 * i + 1] = __syncthreads_and(given[i]);
  answers[3 * i + 2] = __syncthreads_or(given[i]);
}

// Where each thread of the grid is: [blocks, threads, 6] in the order of memory.
__global__ void index_kernel(int* where) {
  const int block = int(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  const int thread = int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  int* const mine = where + 6 * (int64_t(block) * blockDim.x * blockDim.y * blockDim.z + thread);
  mine[0] = int(blockIdx.x);
  mine[1] = int(blockIdx.y);
  mine[2] = int(blockIdx.z);
  mine[3] = int(threadIdx.x);
  mine[4] = int(threadIdx.y);
  mine[5] = int(threadIdx.z);
}

// Every thread of the grid once per number; product by compare-and-swap.
__global__ void atomic_kernel(int* sum, unsigned long long* wide_sum, float* float_sum, double* double_sum,
                              int* extremes, unsigned long long* product) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(sum, i);
  atomicAdd(wide_sum, 1ull << 32);
  atomicAdd(float_sum, 0.5f);
  atomicAdd(double_sum, 0.25);
  atomicMin(extremes, -i);
  atomicMax(extremes + 1, i);
  unsigned long long old = atomicMax(product, 0ull), seen;
  do {
    seen = old;
    old = atomicCAS(product, seen, seen * 3);
  } while (old != seen);
}

// What each block finds in its shared memory: static, then dynamic.
__global__ void fresh_kernel(float* floats, int* integers, double* dynamic) {
  ARTSY_SHARED(float, of_floats, [32]);
  ARTSY_SHARED(int, of_integers, [32]);
  ARTSY_DYNAMIC_SHARED(double, of_dynamic);
  const int i = int(threadIdx.x), place = int(blockIdx.x) * 32 + i;
  floats[place] = of_floats[i];
  integers[place] = of_integers[i];
  dynamic[place] = of_dynamic[i];
  of_floats[i] = 0.0f;  // the next block does not find it
  of_integers[i] = 0;
  of_dynamic[i] = 0;
}

// From a, b, c: a+b, a-b, a*b, a/b, fma(a, b, c) [5, n].
template <class T>
__device__ void arithmetic(const T* a, const T* b, const T* c, T* results, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  results[i] = a[i] + b[i];
  results[n + i] = a[i] - b[i];
  results[2 * n + i] = a[i] * b[i];
  results[3 * n + i] = a[i] / b[i];
  results[4 * n + i] = __hfma(a[i], b[i], c[i]);
}

__global__ void half_kernel(const __half* a, const __half* b, const __half* c, __half* results, int n) {
  arithmetic(a, b, c, results, n);
}
__global__ void bfloat16_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c,
                                __nv_bfloat16* results, int n) {
  arithmetic(a, b, c, results, n);
}
__global__ void round_kernel(const float* x, __half* as_half, __nv_bfloat16* as_bfloat16, int n) {
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) {
    as_half[i] = __float2half_rn(x[i]);
    as_bfloat16[i] = __float2bfloat16_rn(x[i]);
  }
}
__global__ void widen_kernel(const __half* halves, const __nv_bfloat16* bfloat16s, float* results, int n) {
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) {
    results[i] = __half2float(halves[i]);
    results[n + i] = __bfloat162float(bfloat16s[i]);
  }
}

// The fragments of one warp: a [32, 4], b [32, 2] registers, c [32, 4] numbers, changed in place.
__global__ void fragments_kernel(const uint32_t* a, const uint32_t* b, float* c, bool is_half) {
  const int lane = int(threadIdx.x);
  uint32_t of_a[4], of_b[2];
  float of_c[4];
  for (int i = 0; i < 4; ++i) of_a[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) of_b[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) of_c[i] = c[4 * lane + i];
  if (is_half)
    mma_m16n8k16_fp16(of_c, of_a, of_b);
  else
    mma_m16n8k16_bf16(of_c, of_a, of_b);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = of_c[i];
}

// What shared memory holds right after cp.async, after a wait for all but one group, and after a wait for all: [3, 2,
// 32].
__global__ void copy_kernel(const float4* from, float* seen) {
  ARTSY_SHARED(float4, tile, [2][8]);
  const int i = int(threadIdx.x);
  const float* const numbers = reinterpret_cast<const float*>(tile);
  const auto look = [&](int when) {
    __syncthreads();
    for (int k = 0; k < 2; ++k) seen[(2 * when + k) * 32 + i] = numbers[32 * k + i];
    __syncthreads();
  };
  for (int k = 0; k < 2; ++k) {
    if (i < 8) cp_async_16(&tile[k][i], from + 8 * k + i, k == 0 || i < 6);
    cp_async_commit();
  }
  look(0);
  cp_async_wait<1>();
  look(1);
  cp_async_wait<0>();
  look(2);
}

}  // namespace artsy::cuda
