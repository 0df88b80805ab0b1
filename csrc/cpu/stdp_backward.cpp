// stdp_backward and stdp_consolidate_backward on the CPU, with the kernels of stdp/, compiled for each instruction set.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "stdp/backward.h"
#include "stdp/factors.h"
#include "stdp/problem.h"

#define ARTSY_KERNELS "stdp/backward_kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;

struct Cpu {
  static Check check(const char* op, const Tensor&) { return Check(op); }

  template <class Real>
  static void compute(const stdp::Problem<Real>& p, stdp::Gradients<Real> g, const Tensor&) {
    drop_zeros(g.result, p.S * p.J * p.I);
    drop_zeros(g.traces.pre, p.B * p.pre_width());
    drop_zeros(g.traces.post, p.B * p.S * p.J);
    drop_zeros(g.traces.pre_slow, p.B * p.pre_width());
    drop_zeros(g.traces.post_slow, p.B * p.S * p.J);
    drop_zeros(g.traces.eligibility, p.B * p.S * p.J * p.I);
    ARTSY_DISPATCH(run_stdp_backward(p, g));
  }

 private:
  // Null where nothing but 0 arrives: autograd fills in for results that were not used.
  template <class Real>
  static void drop_zeros(const Real*& arriving, int64_t size) {
    if (arriving && std::all_of(arriving, arriving + size, [](Real value) { return value == 0; })) arriving = nullptr;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) {
  m.impl("stdp_backward", &stdp::stdp_backward<Cpu>);
  m.impl("stdp_consolidate_backward", &stdp::stdp_consolidate_backward<Cpu>);
}
