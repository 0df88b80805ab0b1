// Instructions that CUDA C++ has no name for, one line of PTX each; off a GPU their twins of csrc/emulation.
#pragma once

#include "port.cuh"

#ifdef __CUDACC__
#define ARTSY_AT_CALL
#else
#define ARTSY_AT_CALL , ARTSY_AT
#endif

namespace artsy::cuda {

// c [16, 8] += a [16, 16] · b [16, 8] by the lanes of a warp; fragments as in the PTX ISA.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2] ARTSY_AT_CALL) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma<__nv_bfloat16>(c, a, b, at);
#endif
}

__device__ __forceinline__ void mma_m16n8k16_fp16(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2] ARTSY_AT_CALL) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma<__half>(c, a, b, at);
#endif
}

// Starts to copy 16 bytes from global to shared memory, or to zero them. Both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool is_there ARTSY_AT_CALL) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(is_there ? 16 : 0)
               : "memory");
#else
  emulation::start_copy(shared, is_there ? global : nullptr, at);
#endif
}

// Closes a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::close_group();
#endif
}

// Waits for the calling thread's copies, but for those of the last `kGroups` groups.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  emulation::finish_copies(kGroups);
#endif
}

}  // namespace artsy::cuda
#undef ARTSY_AT_CALL
