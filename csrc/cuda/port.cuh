// The one header that kernels include: plain CUDA under nvcc, the emulation of csrc/emulation under a host compiler.
//
//   ARTSY_SHARED(float, tile, [16][17]);           static shared memory; without extents a single number
//   ARTSY_DYNAMIC_SHARED(float, tile);             a pointer to the dynamic shared memory of the launch
//   ARTSY_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...);
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ARTSY_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define ARTSY_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char artsy_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(artsy_dynamic_shared)
#else
#include "../emulation/cuda.h"
#endif

// A kernel's name may hold commas: put a template in parentheses, ARTSY_LAUNCH((kernel<T, 4>), ...).
#define ARTSY_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::artsy::cuda::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace artsy::cuda {

// Numbers of blocks or threads. 64 bits until they are checked: a dim3 would cut them off in silence.
struct Extent {
  int64_t x, y = 1, z = 1;
  constexpr Extent(int64_t x_, int64_t y_ = 1, int64_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The limits of every device from sm_80 on (sm_90 and sm_100 have 227 KiB of shared memory).
constexpr int64_t kMaxSharedBytes = int64_t(163) * 1024;

inline void check_launch(const char* kernel, Extent grid, Extent block, int64_t shared_bytes) {
  const auto is_within = [](Extent extent, int64_t x, int64_t y, int64_t z) {
    return extent.x >= 1 && extent.y >= 1 && extent.z >= 1 && extent.x <= x && extent.y <= y && extent.z <= z;
  };
  const auto fail = [&](const char* what, Extent extent) {
    throw std::runtime_error(std::string(kernel) + ": " + what + ", got [" + std::to_string(extent.x) + ", " +
                             std::to_string(extent.y) + ", " + std::to_string(extent.z) + "]");
  };
  if (!is_within(grid, 0x7fffffff, 65535, 65535)) fail("a grid has 1 to [2147483647, 65535, 65535] blocks", grid);
  if (!is_within(block, 1024, 1024, 64) || block.x * block.y * block.z > 1024)
    fail("a block has 1 to [1024, 1024, 64] threads, 1024 in all", block);
  if (shared_bytes < 0 || shared_bytes > kMaxSharedBytes)
    throw std::runtime_error(std::string(kernel) + ": a block has at most " + std::to_string(kMaxSharedBytes) +
                             " bytes of shared memory, got " + std::to_string(shared_bytes));
}

#ifdef __CUDACC__
inline void check(const char* kernel, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Extent grid, Extent block, int64_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  check_launch(name, grid, block, shared_bytes);
  const auto dim = [](Extent e) { return dim3(unsigned(e.x), unsigned(e.y), unsigned(e.z)); };
  if (shared_bytes > 48 * 1024)  // more than every kernel may have has to be asked for
    check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = dim(grid);
  configuration.blockDim = dim(block);
  configuration.dynamicSmemBytes = size_t(shared_bytes);
  configuration.stream = stream;
  check(name, cudaLaunchKernelEx(&configuration, kernel, Parameters(arguments)...));
}
#else
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Extent grid, Extent block, int64_t shared_bytes,
            cudaStream_t, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel has at most 4 KiB of parameters");
  check_launch(name, grid, block, shared_bytes);
  const auto thread = [kernel, ... values = Parameters(arguments)] { kernel(values...); };
  emulation::run(
      name, {unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)},
      {unsigned(block.x), unsigned(block.y), unsigned(block.z)}, size_t(shared_bytes),
      [](const void* body) { (*static_cast<decltype(&thread)>(body))(); }, &thread);
}
#endif

}  // namespace artsy::cuda
