// combine_routes on a GPU, forward and backward: checks, memory, launches.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "combine_routes.cuh"
#include "launcher.h"

namespace {

using namespace artsy::cuda;
using OptionalTensor = std::optional<Tensor>;

// The arguments as kernels take them: checked and contiguous.
struct Arguments {
  Tensor y;
  Tensor sample, offsets, order, sample_offsets, overflow;
  OptionalTensor weight, base;
  int64_t P, S, B, D;  // D: numbers per row

  Arguments(const std::string& op, const Tensor& y_in, const Tensor& sample_in, const Tensor& subnetwork,
            const Tensor& offsets_in, const Tensor& order_in, const Tensor& sample_offsets_in,
            const Tensor& overflow_in, const OptionalTensor& weight_in, const OptionalTensor& base_in)
      : y(y_in),
        sample(sample_in),
        offsets(offsets_in),
        order(order_in),
        sample_offsets(sample_offsets_in),
        overflow(overflow_in),
        weight(weight_in),
        base(base_in) {
    const Check check(op, y);
    check.tensor("y", y, y.dim() >= 1, "[P, ...]",
                 {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
    P = y.size(0);
    check.vector("routes.sample", sample, "P", P, ScalarType::Long);
    check.vector("routes.subnetwork", subnetwork, "P", P, ScalarType::Long);
    check.vector("routes.order", order, "P", P, ScalarType::Long);
    check.tensor("routes.offsets", offsets, offsets.dim() == 1 && offsets.size(0) > 0, "[S+1]", {ScalarType::Long});
    check.tensor("routes.sample_offsets", sample_offsets, sample_offsets.dim() == 1 && sample_offsets.size(0) > 0,
                 "[B+1]", {ScalarType::Long});
    check.tensor("routes.overflow", overflow, overflow.dim() == 0, "[]", {ScalarType::Bool});
    S = offsets.size(0) - 1;
    B = sample_offsets.size(0) - 1;
    if (weight) check.vector("weight", *weight, "P", P, y.scalar_type());
    if (base) {
      bool fits = base->dim() == y.dim() && base->size(0) == B;
      for (int64_t axis = 1; fits && axis < y.dim(); ++axis) fits = base->size(axis) == y.size(axis);
      check.tensor("base", *base, fits,
                   "[B, ...] with B=" + std::to_string(B) + " and the row shape of y " + shape_of(y),
                   {y.scalar_type()});
    }
    D = 1;
    for (int64_t axis = 1; axis < y.dim(); ++axis) D *= y.size(axis);
    for (Tensor* tensor : {&y, &sample, &offsets, &order, &sample_offsets}) *tensor = made_contiguous(*tensor);
    for (OptionalTensor* tensor : {&weight, &base})
      if (*tensor) *tensor = made_contiguous(**tensor);
  }

  std::vector<int64_t> result_shape() const {
    std::vector<int64_t> shape{B};
    for (int64_t axis = 1; axis < y.dim(); ++axis) shape.push_back(y.size(axis));
    return shape;
  }
};

template <class T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

Tensor combine_routes_cuda(const Tensor& y, const Tensor& sample, const Tensor& subnetwork, const Tensor& offsets,
                           const Tensor& order, const Tensor& sample_offsets, const Tensor& overflow,
                           const OptionalTensor& weight, const OptionalTensor& base) {
  const OnDeviceOf device(y);
  const Arguments a("combine_routes", y, sample, subnetwork, offsets, order, sample_offsets, overflow, weight, base);
  Tensor out = torch::stable::new_empty(a.y, a.result_shape());
  for_element(a.y.scalar_type(), [&]<class T>(T) {
    combine_routes(data<T>(a.y), data_or_null<T>(a.weight), data_or_null<T>(a.base), data<int64_t>(a.order),
                   data<int64_t>(a.sample_offsets), data<bool>(a.overflow), a.B, a.D, data<T>(out), device.stream());
  });
  return out;
}

// Where the plan overflowed the result is NaN whatever base is.
Tensor gradient_of_base(const Tensor& grad, const Tensor& overflow) {
  const Tensor zero = torch::stable::new_zeros(grad, {});
  std::array<StableIValue, 3> stack{torch::stable::detail::from(overflow), torch::stable::detail::from(zero),
                                    torch::stable::detail::from(grad)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::where", "self", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// needs: one flag per positional argument of the op; y is the first, weight and base are the last.
std::vector<Tensor> combine_routes_backward_cuda(const Tensor& grad_in, const Tensor& y, const Tensor& sample,
                                                 const Tensor& subnetwork, const Tensor& offsets, const Tensor& order,
                                                 const Tensor& sample_offsets, const Tensor& overflow,
                                                 const OptionalTensor& weight, const OptionalTensor& base,
                                                 const std::vector<bool>& needs) {
  const OnDeviceOf device(y);
  const Arguments a("combine_routes_backward", y, sample, subnetwork, offsets, order, sample_offsets, overflow, weight,
                    base);
  const Check check("combine_routes_backward", y);
  if (needs.size() != 9) check.fail("needs must have 9 flags, got " + std::to_string(needs.size()));
  const std::vector<int64_t> shape = a.result_shape();
  bool fits = grad_in.dim() == y.dim();
  for (int64_t axis = 0; fits && axis < y.dim(); ++axis) fits = grad_in.size(axis) == shape[axis];
  check.tensor("grad", grad_in, fits, "shaped as the result of the op", {y.scalar_type()});
  const Tensor grad = made_contiguous(grad_in);

  std::vector<Tensor> gradients;
  std::optional<Tensor> grad_y, grad_weight;
  if (needs[0]) gradients.push_back(grad_y.emplace(torch::stable::empty_like(a.y)));
  if (needs[7]) gradients.push_back(grad_weight.emplace(torch::stable::empty_like(a.weight.value())));
  if (needs[8]) gradients.push_back(gradient_of_base(grad, a.overflow));
  if (grad_y || grad_weight)
    for_element(a.y.scalar_type(), [&]<class T>(T) {
      combine_routes_backward(data<T>(grad), data<T>(a.y), data_or_null<T>(a.weight), data<int64_t>(a.sample),
                              data<int64_t>(a.offsets), data<bool>(a.overflow), a.S, a.P, a.D,
                              grad_y ? data<T>(*grad_y) : nullptr, grad_weight ? data<T>(*grad_weight) : nullptr,
                              device.stream());
    });
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, ARTSY_DEVICE, m) {
  m.impl("combine_routes", TORCH_BOX(&combine_routes_cuda));
  m.impl("combine_routes_backward", TORCH_BOX(&combine_routes_backward_cuda));
}
