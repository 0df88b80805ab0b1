// encode_spikes on a GPU: checks, memory, launch.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "encode_spikes.cuh"
#include "launcher.h"

namespace {

using namespace artsy::cuda;

Tensor encode_spikes_cuda(const Tensor& x, int64_t steps, const std::string& code, int64_t seed, int64_t offset,
                          std::optional<ScalarType> dtype) {
  const Check check("encode_spikes", x);
  check.tensor("x", x, true, "[...]", {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  const bool latency = check.word("code", code, {"rate", "latency"}) == 1;
  check.require(steps >= 0, "steps must be >= 0, got " + std::to_string(steps));
  check.require(offset >= 0, "offset must be >= 0, got " + std::to_string(offset));
  const ScalarType type = dtype.value_or(ScalarType::Bool);
  check.dtype("dtype", type,
              {ScalarType::Bool, ScalarType::Byte, ScalarType::Float, ScalarType::Double, ScalarType::BFloat16,
               ScalarType::Half});

  const OnDeviceOf device(x);
  const bool exact = x.scalar_type() == ScalarType::Double || x.scalar_type() == ScalarType::Float;
  const Tensor rates = made_contiguous(exact ? x : torch::stable::to(x, ScalarType::Float));
  std::vector<int64_t> shape{steps};
  for (int64_t axis = 0; axis < x.dim(); ++axis) shape.push_back(x.size(axis));
  Tensor spikes = torch::stable::new_empty(rates, shape, type);
  const auto encode = [&]<class Word>(Word one) {
    const auto as = [&]<class Real>(Real) {
      encode_spikes(data<Real>(rates), rates.numel(), steps, latency, seed, offset, one, data<Word>(spikes),
                    device.stream());
    };
    rates.scalar_type() == ScalarType::Double ? as(double{}) : as(float{});
  };
  switch (type) {  // the bits of 1
    case ScalarType::Double:
      encode(uint64_t{0x3FF0000000000000});
      break;
    case ScalarType::Float:
      encode(uint32_t{0x3F800000});
      break;
    case ScalarType::Half:
      encode(uint16_t{0x3C00});
      break;
    case ScalarType::BFloat16:
      encode(uint16_t{0x3F80});
      break;
    default:
      encode(uint8_t{1});
  }
  return spikes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, ARTSY_DEVICE, m) { m.impl("encode_spikes", TORCH_BOX(&encode_spikes_cuda)); }
