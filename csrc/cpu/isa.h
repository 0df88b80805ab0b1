// Which instruction set the CPU kernels use: the best one that this processor has, or the one that ARTSY_CPU_ISA names.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace artsy {

// Other compilers spell the pragmas of each_isa.h differently; with them, and on other processors, there is one
// version.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ARTSY_X86_VERSIONS 1
#else
#define ARTSY_X86_VERSIONS 0
#endif

enum class Isa { portable, avx2, avx512 };

inline Isa best_isa() {
#if ARTSY_X86_VERSIONS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::portable;
}

// Read at each call, so that a test can run all versions in one process.
inline Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wish = std::getenv("ARTSY_CPU_ISA");
  if (!wish || !*wish) return best;
  const std::string name = wish;
  const char* const names[] = {"portable", "avx2", "avx512"};
  for (int isa = 0; isa < 3; ++isa) {
    if (name != names[isa]) continue;
    if (isa > static_cast<int>(best))
      throw std::invalid_argument("ARTSY_CPU_ISA: this build and processor have no " + name);
    return static_cast<Isa>(isa);
  }
  throw std::invalid_argument("ARTSY_CPU_ISA must be portable, avx2 or avx512, got '" + name + "'");
}

}  // namespace artsy
