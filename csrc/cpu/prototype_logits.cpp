// prototype_logits on the CPU: checks the arguments, then computes with the kernels of prototype_logits/, compiled for
// each instruction set. The gradients are those of the definition.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "prototype_logits/problem.h"
#include "routing/dtypes.h"
#include "routing/ranges.h"
#include "routing/routes.h"
#include "routing/types.h"
#include "scratch.h"

namespace artsy {
using namespace artsy::prototype_logits;
}

#define ARTSY_KERNELS "prototype_logits/kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;

// The arguments are checked as artsy_ext/ops/prototype_logits/__init__.py does.
Tensor prototype_logits_cpu(const Tensor& features, const Tensor& sample, const Tensor& subnetwork,
                            const Tensor& offsets, const Tensor& order, const Tensor& sample_offsets,
                            const Tensor& overflow, const Tensor& prototypes, const Tensor& weight,
                            std::optional<Tensor> base_features, std::optional<Tensor> base_prototypes,
                            std::string reduce) {
  Check check("prototype_logits");
  check.tensor("features", features, {"PD"}, floating_types);
  const ScalarType dtype = features.scalar_type();
  const Routes routes(check, sample, subnetwork, offsets, order, sample_offsets, overflow);
  check.tensor("prototypes", prototypes, {"SCD"}, {dtype});
  check.tensor("weight", weight, {"SC"}, {dtype});
  const bool with_base = base_features && base_prototypes;
  if (!with_base && (base_features || base_prototypes))
    check.fail(std::string("base_features and base_prototypes go together, ") +
               (base_features ? "base_prototypes" : "base_features") + " is missing");
  if (with_base) {
    check.tensor("base_features", *base_features, {"BD"}, {dtype});
    check.tensor("base_prototypes", *base_prototypes, {"CD"}, {dtype});
  }
  const bool maximum = check.word("reduce", reduce, {"max", "sum"}) == 0;
  routes.check_offsets(check);
  routes.check_pairs(check);

  const int64_t S = routes.S, B = routes.B, C = check.size('C'), D = check.size('D');
  const Tensor result = torch::stable::empty({B, C}, dtype);
  const Tensor given[] = {made_contiguous(features), made_contiguous(prototypes), made_contiguous(weight),
                          made_contiguous(with_base ? *base_features : features),
                          made_contiguous(with_base ? *base_prototypes : features)};
  with_type(dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    auto* logits = static_cast<Stored*>(result.mutable_data_ptr());
    if (routes.overflow()) {
      std::fill_n(logits, B * C, from_real<Stored>(std::numeric_limits<Real<Stored>>::quiet_NaN()));
      return;
    }
    const auto numbers = [&](int i) { return static_cast<const Stored*>(given[i].const_data_ptr()); };
    const Problem<Stored> problem{numbers(0),
                                  numbers(1),
                                  numbers(2),
                                  with_base ? numbers(3) : nullptr,
                                  with_base ? numbers(4) : nullptr,
                                  routes.offsets(),
                                  routes.order(),
                                  routes.sample_offsets(),
                                  S,
                                  B,
                                  C,
                                  D,
                                  maximum};
    const auto groups = groups_of(problem);
    double products = 0;
    for (const auto& group : groups)
      products += static_cast<double>(group.count * D) * static_cast<double>(group.classes.size());
    ARTSY_DISPATCH(forward(problem, groups, workers_for(products), logits));
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("prototype_logits", TORCH_BOX(&prototype_logits_cpu)); }
