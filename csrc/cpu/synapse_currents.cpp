// synapse_currents on the CPU: checks the arguments, then computes with the kernels of synapse_currents/, compiled for
// each instruction set. The gradients are those of the definition.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "routing/dtypes.h"
#include "routing/types.h"
#include "scratch.h"

namespace artsy::synapse_currents {

template <class Stored>
struct Problem {
  const Stored *x, *weight, *bias;  // [B, I], [units, I], [units]
  const uint8_t* functional;        // [units, I] or null
  int64_t B, units, I;
};

}  // namespace artsy::synapse_currents

namespace artsy {
using namespace artsy::synapse_currents;
}

#define ARTSY_KERNELS "synapse_currents/kernels.h"
#include "each_isa_bfloat16.h"

namespace {

using namespace artsy;

// The arguments are checked as artsy_ext/ops/synapse_currents/__init__.py does.
Tensor synapse_currents_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> functional,
                            const Tensor& bias) {
  Check check("synapse_currents");
  check.tensor("x", x, {"BI"}, floating_types);
  const ScalarType dtype = x.scalar_type();
  check.tensor("weight", weight, {"SJI"}, {dtype});
  if (functional) check.tensor("functional", *functional, {"SJI"}, {ScalarType::Bool});
  check.tensor("bias", bias, {"SJ"}, {dtype});
  const int64_t B = check.size('B'), S = check.size('S'), J = check.size('J'), I = check.size('I');
  const Tensor result = torch::stable::empty({B, S, J}, dtype);
  Tensor given[] = {x, weight, bias};
  for (Tensor& tensor : given) tensor = made_contiguous(tensor);
  if (functional) functional = made_contiguous(*functional);
  with_type(dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    const auto numbers = [&](int i) { return static_cast<const Stored*>(given[i].const_data_ptr()); };
    const auto* transmits = functional ? static_cast<const uint8_t*>(functional->const_data_ptr()) : nullptr;
    const Problem<Stored> problem{numbers(0), numbers(1), numbers(2), transmits, B, S * J, I};
    const int64_t workers = workers_for(static_cast<double>(B * S) * static_cast<double>(J * I));
    auto* currents = static_cast<Stored*>(result.mutable_data_ptr());
    ARTSY_DISPATCH_BFLOAT16(Stored, forward(problem, workers, currents));
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("synapse_currents", TORCH_BOX(&synapse_currents_cpu)); }
