// What this build contains, for `artsy info`. The package works without it.
#include <pybind11/pybind11.h>

#include "build_facts.h"  // written by CMake

PYBIND11_MODULE(_build, m) {
  m.doc() = "Facts about the compiled libraries of artsy_ext.";
  m.attr("compiler") = ARTSY_COMPILER;
  m.attr("torch_version") = ARTSY_TORCH_VERSION;
  m.attr("torch_abi_target") = ARTSY_TORCH_TARGET;
  m.attr("cuda") = ARTSY_CUDA_BUILD;
}
