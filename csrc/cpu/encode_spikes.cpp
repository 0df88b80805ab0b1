// encode_spikes on the CPU: every element's random numbers come from its index, so that any division of the work and
// any device give the same spikes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "../philox.h"
#include "arguments.h"
#include "parallel.h"

#define ARTSY_KERNELS "encode_spikes/kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;

struct Code {
  bool latency;
  int64_t steps, offset;
  PhiloxKey key;
};

// One spike at step ⌊(1 − x)(T − 1) + ½⌋, rounded at every operation as the definition does it (CMakeLists.txt forbids
// fused ones here). A NaN has none.
template <class Real, class Word>
void encode_latencies(const Real* x, int64_t begin, int64_t end, int64_t size, int64_t steps, Word one, Word* spikes) {
  for (int64_t t = 0; t < steps; ++t) std::fill(spikes + t * size + begin, spikes + t * size + end, Word(0));
  for (int64_t k = begin; k < end; ++k) {
    if (!(x[k] > 0)) continue;
    const Real step = std::floor((Real(1) - std::min(x[k], Real(1))) * Real(steps - 1) + Real(0.5));
    if (step < Real(steps)) spikes[static_cast<int64_t>(step) * size + k] = one;
  }
}

template <class Real, class Word>
void encode(const Tensor& x, const Code& code, Word one, const Tensor& spikes) {
  constexpr int64_t grain = 1024;
  const auto* from = static_cast<const Real*>(x.const_data_ptr());
  auto* to = static_cast<Word*>(spikes.mutable_data_ptr());
  const int64_t size = x.numel(), parts = code.steps ? (size + grain - 1) / grain : 0;
  for_each_task(parts, workers_for(double(size) * double(code.steps) * 4), [&](int64_t, int64_t part) {
    const int64_t begin = part * grain, end = std::min(begin + grain, size);
    if (code.latency)
      encode_latencies(from, begin, end, size, code.steps, one, to);
    else
      ARTSY_DISPATCH(encode_rates(from, begin, end, size, code.steps, code.key, code.offset, one, to));
  });
}

// A spike is 1 in the type that is asked for; bits are all that is written.
template <class Real>
void encode_as(ScalarType type, const Tensor& x, const Code& code, const Tensor& spikes) {
  switch (type) {
    case ScalarType::Double:
      return encode<Real, uint64_t>(x, code, 0x3FF0000000000000, spikes);
    case ScalarType::Float:
      return encode<Real, uint32_t>(x, code, 0x3F800000, spikes);
    case ScalarType::Half:
      return encode<Real, uint16_t>(x, code, 0x3C00, spikes);
    case ScalarType::BFloat16:
      return encode<Real, uint16_t>(x, code, 0x3F80, spikes);
    default:
      return encode<Real, uint8_t>(x, code, 1, spikes);
  }
}

Tensor encode_spikes_cpu(const Tensor& x, int64_t steps, const std::string& code, int64_t seed, int64_t offset,
                         std::optional<ScalarType> dtype) {
  Check check("encode_spikes");
  check.device("x", x);
  check.dtype("x", x.scalar_type(), {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  const bool latency = check.word("code", code, {"rate", "latency"}) == 1;
  check.require(steps >= 0, "steps must be >= 0, got " + std::to_string(steps));
  check.require(offset >= 0, "offset must be >= 0, got " + std::to_string(offset));
  const ScalarType type = dtype.value_or(ScalarType::Bool);
  check.dtype("dtype", type,
              {ScalarType::Bool, ScalarType::Byte, ScalarType::Float, ScalarType::Double, ScalarType::BFloat16,
               ScalarType::Half});

  const bool exact = x.scalar_type() == ScalarType::Double || x.scalar_type() == ScalarType::Float;
  const Tensor rates = made_contiguous(exact ? x : torch::stable::to(x, ScalarType::Float));
  std::vector<int64_t> shape{steps};
  for (int64_t axis = 0; axis < x.dim(); ++axis) shape.push_back(x.size(axis));
  Tensor spikes = torch::stable::empty(shape, type);
  const auto key = static_cast<uint64_t>(seed);
  const Code how{latency, steps, offset, {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}};
  if (rates.scalar_type() == ScalarType::Double)
    encode_as<double>(type, rates, how, spikes);
  else
    encode_as<float>(type, rates, how, spikes);
  return spikes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("encode_spikes", TORCH_BOX(&encode_spikes_cpu)); }
