// synapse_scores on the CPU: checks the arguments, then computes with the kernels of synapse_scores/, compiled for each
// instruction set. The gradients are those of the definition.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "routing/dtypes.h"
#include "routing/types.h"
#include "scratch.h"

namespace artsy::synapse_scores {

template <class Stored>
struct Problem {
  const Stored *features, *down, *down_bias, *up, *up_bias;  // [B, D], [S, R, D], [S, R], [S, R], [S]
  int64_t B, S, R, D;
};

}  // namespace artsy::synapse_scores

namespace artsy {
using namespace artsy::synapse_scores;
}

#define ARTSY_KERNELS "synapse_scores/kernels.h"
#include "each_isa_bfloat16.h"

namespace {

using namespace artsy;

// The arguments are checked as artsy_ext/ops/synapse_scores/__init__.py does.
Tensor synapse_scores_cpu(const Tensor& features, const Tensor& down, const Tensor& down_bias, const Tensor& up,
                          const Tensor& up_bias) {
  Check check("synapse_scores");
  check.tensor("features", features, {"BD"}, floating_types);
  const ScalarType dtype = features.scalar_type();
  check.tensor("down", down, {"SRD"}, {dtype});
  check.tensor("down_bias", down_bias, {"SR"}, {dtype});
  check.tensor("up", up, {"SR"}, {dtype});
  check.tensor("up_bias", up_bias, {"S"}, {dtype});
  const int64_t B = check.size('B'), S = check.size('S'), R = check.size('R'), D = check.size('D');
  const Tensor result = torch::stable::empty({B, S}, dtype);
  Tensor given[] = {features, down, down_bias, up, up_bias};
  for (Tensor& tensor : given) tensor = made_contiguous(tensor);
  with_type(dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    const auto numbers = [&](int i) { return static_cast<const Stored*>(given[i].const_data_ptr()); };
    const Problem<Stored> problem{numbers(0), numbers(1), numbers(2), numbers(3), numbers(4), B, S, R, D};
    const int64_t workers = workers_for(static_cast<double>(B * S) * static_cast<double>(R * D));
    auto* scores = static_cast<Stored*>(result.mutable_data_ptr());
    ARTSY_DISPATCH_BFLOAT16(Stored, forward(problem, workers, scores));
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("synapse_scores", TORCH_BOX(&synapse_scores_cpu)); }
