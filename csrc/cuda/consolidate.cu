// consolidate on a GPU: checks, memory, launch.
#include <torch/csrc/stable/library.h>

#include "consolidate.cuh"
#include "launcher.h"

namespace {

using namespace artsy::cuda;

Tensor consolidate_cuda(const Tensor& weight, const Tensor& functional, double on, double off) {
  Check check("consolidate", weight);
  check.tensor("weight", weight, {"SJI"}, {ScalarType::Float, ScalarType::Double});
  check.tensor("functional", functional, {"SJI"}, {ScalarType::Bool});
  check.thresholds(on, off);
  const OnDeviceOf device(weight);
  const Tensor weights = made_contiguous(weight), before = made_contiguous(functional);
  Tensor result = torch::stable::empty_like(before);
  const auto as = [&]<class T>(T) {
    consolidate(data<T>(weights), data<uint8_t>(before), weights.numel(), T(on), T(off), data<uint8_t>(result),
                device.stream());
  };
  weights.scalar_type() == ScalarType::Double ? as(double{}) : as(float{});
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, ARTSY_DEVICE, m) { m.impl("consolidate", TORCH_BOX(&consolidate_cuda)); }
