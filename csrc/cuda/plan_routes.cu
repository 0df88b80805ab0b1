// plan_routes on a GPU: checks, memory, launches. Without a capacity it waits once, for the number of pairs.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "launcher.h"
#include "plan_routes.cuh"

namespace {

using namespace artsy::cuda;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> plan_routes_cuda(const Tensor& mask_in,
                                                                            std::optional<int64_t> capacity) {
  const Check check("plan_routes", mask_in);
  check.tensor("mask", mask_in, mask_in.dim() == 2, "[B, S]", {ScalarType::Bool});
  if (capacity && *capacity < 0) check.fail("capacity must be >= 0, got " + std::to_string(*capacity));

  const OnDeviceOf device(mask_in);
  const Tensor mask = made_contiguous(mask_in);
  const int64_t B = mask.size(0), S = mask.size(1);
  const auto indexes = [&](int64_t size) { return torch::stable::new_empty(mask, {size}, ScalarType::Long); };

  Tensor offsets = indexes(S + 1), sample_offsets = indexes(B + 1), scratch = indexes(plan_routes_scratch(B, S));
  Tensor overflow = torch::stable::new_empty(mask, {}, ScalarType::Bool);
  plan_routes_count(data<uint8_t>(mask), B, S, capacity.value_or(-1), data<int64_t>(scratch), data<int64_t>(offsets),
                    data<int64_t>(sample_offsets), data<bool>(overflow), device.stream());

  const int64_t P = capacity ? *capacity : device.read(data<int64_t>(offsets) + S);
  Tensor sample = indexes(P), subnetwork = indexes(P), order = indexes(P);
  plan_routes_scatter(data<uint8_t>(mask), B, S, data<int64_t>(scratch), data<int64_t>(offsets),
                      data<int64_t>(sample_offsets), P, data<int64_t>(sample), data<int64_t>(subnetwork),
                      data<int64_t>(order), device.stream());
  return {sample, subnetwork, offsets, order, sample_offsets, overflow};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, ARTSY_DEVICE, m) { m.impl("plan_routes", TORCH_BOX(&plan_routes_cuda)); }
