// consolidate on the CPU: one pass over the weights.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "arguments.h"
#include "parallel.h"

#define ARTSY_KERNELS "consolidate/kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;

template <class Real>
void compute(const Tensor& weight, const Tensor& functional, double on, double off, const Tensor& result) {
  constexpr int64_t grain = 1 << 14;
  const auto* weights = static_cast<const Real*>(weight.const_data_ptr());
  const auto* before = static_cast<const uint8_t*>(functional.const_data_ptr());
  auto* after = static_cast<uint8_t*>(result.mutable_data_ptr());
  const int64_t size = weight.numel();
  for_each_task((size + grain - 1) / grain, workers_for(double(size) / 8), [&](int64_t, int64_t part) {
    const int64_t begin = part * grain, count = std::min(grain, size - begin);
    ARTSY_DISPATCH(consolidate(weights + begin, before + begin, count, Real(on), Real(off), after + begin));
  });
}

Tensor consolidate_cpu(const Tensor& weight, const Tensor& functional, double on, double off) {
  Check check("consolidate");
  check.tensor("weight", weight, {"SJI"}, {ScalarType::Float, ScalarType::Double});
  check.tensor("functional", functional, {"SJI"}, {ScalarType::Bool});
  check.thresholds(on, off);
  const Tensor weights = made_contiguous(weight), before = made_contiguous(functional);
  Tensor result = torch::stable::empty(std::vector{weight.size(0), weight.size(1), weight.size(2)}, ScalarType::Bool);
  if (weight.scalar_type() == ScalarType::Double)
    compute<double>(weights, before, on, off, result);
  else
    compute<float>(weights, before, on, off, result);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("consolidate", TORCH_BOX(&consolidate_cpu)); }
