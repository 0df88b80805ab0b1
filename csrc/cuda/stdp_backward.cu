// stdp_backward and stdp_consolidate_backward on a GPU: memory, launches.
#include <torch/csrc/stable/library.h>

#include "../cpu/stdp/backward.h"
#include "launcher.h"
#include "stdp_backward.cuh"

namespace {

using namespace artsy::cuda;

struct Gpu {
  static Check check(const char* op, const Tensor& weight) { return Check(op, weight); }

  template <class Real>
  static void compute(const artsy::stdp::Problem<Real>& p, const artsy::stdp::Gradients<Real>& g,
                      const Tensor& weight) {
    const OnDeviceOf device(weight);
    Tensor scratch = torch::stable::new_empty(weight, {stdp_backward_scratch(p, g)}, ScalarType::Byte);
    stdp_backward(p, g, scratch.mutable_data_ptr(), device.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, ARTSY_DEVICE, m) {
  m.impl("stdp_backward", &artsy::stdp::stdp_backward<Gpu>);
  m.impl("stdp_consolidate_backward", &artsy::stdp::stdp_consolidate_backward<Gpu>);
}
