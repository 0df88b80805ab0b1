// Philox-4x32-10 (Salmon et al., SC 2011): 128 random bits from a counter and a key, for many counters at once. The
// same code on every device, hence the same bits.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ARTSY_EVERYWHERE __host__ __device__ __forceinline__
#else
#define ARTSY_EVERYWHERE inline __attribute__((always_inline))
#endif

namespace artsy {

struct PhiloxKey {
  uint32_t low, high;
};

// The rounds for N counters side by side; c[k][n] is word k of counter n, before and after. Plain loops, which the
// compiler turns into vectors.
template <int N>
ARTSY_EVERYWHERE void philox(uint32_t (&c)[4][N], PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    for (int n = 0; n < N; ++n) {
      const uint64_t a = uint64_t{0xD2511F53} * c[0][n], b = uint64_t{0xCD9E8D57} * c[2][n];
      c[0][n] = static_cast<uint32_t>(b >> 32) ^ c[1][n] ^ key.low;
      c[1][n] = static_cast<uint32_t>(b);
      c[2][n] = static_cast<uint32_t>(a >> 32) ^ c[3][n] ^ key.high;
      c[3][n] = static_cast<uint32_t>(a);
    }
    key.low += 0x9E3779B9;
    key.high += 0xBB67AE85;
  }
}

}  // namespace artsy
#undef ARTSY_EVERYWHERE
