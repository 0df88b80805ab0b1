// As each_isa.h, and twice more for processors that multiply pairs of bfloat16: in artsy::avx512bf16 with vectors, in
// artsy::amx with tiles. Those versions are used for bfloat16 where nobody asks for one of the three others, which do
// without.
#include <cstdlib>

#include "each_isa.h"

#if ARTSY_X86_VERSIONS
#include <sys/syscall.h>
#include <unistd.h>

#define ARTSY_VECTOR_BYTES 64
#define ARTSY_BFLOAT16_DOT 1

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
namespace artsy::avx512bf16 {
#include ARTSY_KERNELS
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#define ARTSY_BFLOAT16_TILES 1
namespace artsy::amx {
#include ARTSY_KERNELS
}
#undef ARTSY_BFLOAT16_TILES
#pragma GCC pop_options

#undef ARTSY_BFLOAT16_DOT
#undef ARTSY_VECTOR_BYTES

namespace artsy {

enum class BFloat16Products { none, vectors, tiles };

// Linux lends the tile registers to a process that asks for them.
inline bool has_tiles() {
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                              syscall(SYS_arch_prctl, request, tile_data) == 0;
  return granted;
}

inline BFloat16Products bfloat16_products() {
  const char* wish = std::getenv("ARTSY_CPU_ISA");
  if ((wish && *wish) || chosen_isa() != Isa::avx512 || !__builtin_cpu_supports("avx512bf16"))
    return BFloat16Products::none;
  return has_tiles() ? BFloat16Products::tiles : BFloat16Products::vectors;
}

}  // namespace artsy

#define ARTSY_DISPATCH_BFLOAT16(Stored, call)                  \
  [&] {                                                        \
    if constexpr (std::is_same_v<Stored, ::artsy::BFloat16>) { \
      switch (::artsy::bfloat16_products()) {                  \
        case ::artsy::BFloat16Products::tiles:                 \
          return ::artsy::amx::call;                           \
        case ::artsy::BFloat16Products::vectors:               \
          return ::artsy::avx512bf16::call;                    \
        default:                                               \
          break;                                               \
      }                                                        \
    }                                                          \
    return ARTSY_DISPATCH(call);                               \
  }()
#else
#define ARTSY_DISPATCH_BFLOAT16(Stored, call) ARTSY_DISPATCH(call)
#endif
