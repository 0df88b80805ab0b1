// stdp, stdp_ and stdp_consolidate on a GPU: memory, launches.
#include <torch/csrc/stable/library.h>

#include "../cpu/stdp/forward.h"
#include "launcher.h"
#include "stdp.cuh"

namespace {

using namespace artsy::cuda;

struct Gpu {
  static Check check(const char* op, const Tensor& weight) { return Check(op, weight); }

  template <class Real>
  static void compute(const artsy::stdp::Problem<Real>& p, const Tensor& weight) {
    const OnDeviceOf device(weight);
    Tensor scratch = torch::stable::new_empty(weight, {stdp_scratch(p)}, ScalarType::Byte);
    stdp(p, scratch.mutable_data_ptr(), device.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, ARTSY_DEVICE, m) {
  m.impl("stdp", &artsy::stdp::stdp<Gpu>);
  m.impl("stdp_", &artsy::stdp::stdp_in_place<Gpu>);
  m.impl("stdp_consolidate", &artsy::stdp::stdp_consolidate<Gpu>);
}
