// As each_isa.h, and once more in artsy::avx512bf16 for processors that multiply pairs of bfloat16. That version is
// used for bfloat16 where nobody asks for one of the three others, which do without.
#include <cstdlib>

#include "each_isa.h"

#if ARTSY_X86_VERSIONS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#define ARTSY_VECTOR_BYTES 64
#define ARTSY_BFLOAT16_DOT 1
namespace artsy::avx512bf16 {
#include ARTSY_KERNELS
}
#undef ARTSY_BFLOAT16_DOT
#undef ARTSY_VECTOR_BYTES
#pragma GCC pop_options

namespace artsy {

inline bool multiplies_bfloat16() {
  const char* wish = std::getenv("ARTSY_CPU_ISA");
  return !(wish && *wish) && chosen_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
}

}  // namespace artsy

#define ARTSY_DISPATCH_BFLOAT16(Stored, call)                               \
  [&] {                                                                     \
    if constexpr (std::is_same_v<Stored, ::artsy::BFloat16>)                \
      if (::artsy::multiplies_bfloat16()) return ::artsy::avx512bf16::call; \
    return ARTSY_DISPATCH(call);                                            \
  }()
#else
#define ARTSY_DISPATCH_BFLOAT16(Stored, call) ARTSY_DISPATCH(call)
#endif
