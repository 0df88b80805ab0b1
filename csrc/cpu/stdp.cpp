// stdp, stdp_ and stdp_consolidate on the CPU: the kernels of stdp/, compiled for each instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

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
#include <string>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "stdp/call.h"
#include "stdp/factors.h"
#include "stdp/forward.h"
#include "stdp/problem.h"

#define ARTSY_KERNELS "stdp/kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;
using namespace artsy::stdp;

struct Cpu {
  static Check check(const char* op, const Tensor&) { return Check(op); }

  template <class Real>
  static void compute(const Problem<Real>& p, const Tensor&) {
    // The traces start as they are given, or at 0; the eligibility is the kernels' own business.
    const auto begin = [](const Real* given, Real* trace, int64_t count) {
      if (given)
        std::copy_n(given, count, trace);
      else
        std::fill_n(trace, count, Real(0));
    };
    const int64_t pre = p.B * p.pre_width(), post = p.B * p.S * p.J;
    begin(p.given.pre, p.traces.pre, pre);
    begin(p.given.post, p.traces.post, post);
    if (p.rule.triplet) {
      begin(p.given.pre_slow, p.traces.pre_slow, pre);
      begin(p.given.post_slow, p.traces.post_slow, post);
    }
    ARTSY_DISPATCH(run_stdp(p));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) {
  m.impl("stdp", &artsy::stdp::stdp<Cpu>);
  m.impl("stdp_", &artsy::stdp::stdp_in_place<Cpu>);
  m.impl("stdp_consolidate", &artsy::stdp::stdp_consolidate<Cpu>);
}
