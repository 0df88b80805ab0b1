// Compiles ARTSY_KERNELS, a header without include guard, once per instruction set: in artsy::portable, artsy::avx2 and
// artsy::avx512. ARTSY_VECTOR_BYTES says how wide the vectors are. What ARTSY_KERNELS needs must be included before:
// code of other headers must not be compiled for a processor that may not be there.
//
// ARTSY_DISPATCH(call) then calls it in the namespace of the instruction set of this process.
#include "isa.h"

#define ARTSY_VECTOR_BYTES 16
namespace artsy::portable {
#include ARTSY_KERNELS
}
#undef ARTSY_VECTOR_BYTES

#if ARTSY_X86_VERSIONS
// GCC 12 takes the registers that its own header leaves undefined on purpose for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define ARTSY_VECTOR_BYTES 32
namespace artsy::avx2 {
#include ARTSY_KERNELS
}
#undef ARTSY_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define ARTSY_VECTOR_BYTES 64
namespace artsy::avx512 {
#include ARTSY_KERNELS
}
#undef ARTSY_VECTOR_BYTES
#pragma GCC pop_options

#define ARTSY_DISPATCH(call)            \
  [&] {                                 \
    switch (::artsy::chosen_isa()) {    \
      case ::artsy::Isa::avx512:        \
        return ::artsy::avx512::call;   \
      case ::artsy::Isa::avx2:          \
        return ::artsy::avx2::call;     \
      default:                          \
        return ::artsy::portable::call; \
    }                                   \
  }()
#else
#define ARTSY_DISPATCH(call) ::artsy::portable::call
#endif
