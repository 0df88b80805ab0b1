// stdp, stdp_ and stdp_consolidate on the CPU: checks the arguments, then computes with the kernels of stdp/, compiled
// for each instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "stdp/call.h"
#include "stdp/factors.h"
#include "stdp/problem.h"

#define ARTSY_KERNELS "stdp/kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;
using namespace artsy::stdp;
using torch::stable::detail::from;

struct Consolidation {
  Tensor functional;
  double on, off;
};

struct Results {
  Tensor weight, traces[5], functional;
};

template <class Real>
void compute(const Check& check, const Rule& rule, const Tensor& weight, const SpikeArguments& given,
             const Consolidation* consolidation, Results& results) {
  Problem<Real> p = problem_of<Real>(check, rule, weight, given);
  Real* traces[5];
  for (int k = 0; k < 5; ++k) {
    traces[k] = static_cast<Real*>(results.traces[k].mutable_data_ptr());
    if (k == 4 || results.traces[k].numel() == 0) continue;
    const auto size = static_cast<size_t>(results.traces[k].numel()) * sizeof(Real);
    if (given.traces[k])
      std::memcpy(traces[k], given.traces[k]->const_data_ptr(), size);
    else
      std::memset(traces[k], 0, size);
  }
  p.traces = {traces[0], traces[1], traces[2], traces[3], traces[4]};
  p.result = static_cast<Real*>(results.weight.mutable_data_ptr());
  if (consolidation) {
    p.functional = static_cast<const uint8_t*>(consolidation->functional.const_data_ptr());
    p.functional_result = static_cast<uint8_t*>(results.functional.mutable_data_ptr());
    p.on = Real(consolidation->on), p.off = Real(consolidation->off);
  }
  ARTSY_DISPATCH(run_stdp(p));
}

Results run(Check& check, const Tensor& weight, SpikeArguments given, const Rule& rule, bool in_place,
            std::optional<Consolidation> consolidation) {
  const ScalarType real = weight.scalar_type();
  make_readable(given, real);
  if (consolidation) consolidation->functional = torch::stable::contiguous(consolidation->functional);

  const int64_t B = check.size('B'), S = check.size('S'), J = check.size('J'), I = check.size('I');
  const auto fresh = [&](bool kept, const std::vector<int64_t>& shape) {
    return torch::stable::empty(kept ? shape : std::vector<int64_t>{0}, real);
  };
  const std::vector<int64_t> pre = given.pre.dim() == 3 ? std::vector{B, I} : std::vector{B, S, I}, post{B, S, J};
  const bool slow = rule.triplet.has_value();
  // A rule that compares with the weights it found needs them beside those it writes.
  const bool onto_itself = in_place && weight.is_contiguous() && rule.dependence == Dependence::none;
  const Tensor readable = torch::stable::contiguous(weight);
  Results results{
      onto_itself ? weight : fresh(true, {S, J, I}),
      {fresh(true, pre), fresh(true, post), fresh(slow, pre), fresh(slow, post),
       fresh(rule.eligibility.has_value(), {B, S, J, I})},
      torch::stable::empty(consolidation ? std::vector{S, J, I} : std::vector<int64_t>{0}, ScalarType::Bool)};
  const Consolidation* state = consolidation ? &*consolidation : nullptr;
  if (real == ScalarType::Float)
    compute<float>(check, rule, readable, given, state, results);
  else
    compute<double>(check, rule, readable, given, state, results);
  return results;
}

// Autograd learns of a change through PyTorch's own in-place ops; this one touches no element.
void mark_changed(const Tensor& tensor) {
  Tensor whole = tensor;
  Tensor nothing = torch::stable::narrow(whole, 0, 0, 0);
  torch::stable::zero_(nothing);
}

void stdp_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  const auto weight = arguments.take<Tensor>();
  SpikeArguments spikes(arguments);
  const RuleArguments rule_arguments(arguments);
  Check check("stdp");
  const Rule rule = rule_arguments.checked(check);
  check_tensors(check, weight, spikes, rule);
  const Results results = run(check, weight, std::move(spikes), rule, false, std::nullopt);
  stack[0] = from(results.weight);
  for (int k = 0; k < 5; ++k) stack[1 + k] = from(results.traces[k]);
}

void stdp_in_place_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  auto weight = arguments.take<Tensor>();
  SpikeArguments spikes(arguments);
  const RuleArguments rule_arguments(arguments);
  Check check("stdp_");
  const Rule rule = rule_arguments.checked(check);
  check_tensors(check, weight, spikes, rule);
  const Results results = run(check, weight, std::move(spikes), rule, true, std::nullopt);
  if (results.weight.data_ptr() == weight.data_ptr())
    mark_changed(weight);
  else
    torch::stable::copy_(weight, results.weight);
  for (int k = 0; k < 5; ++k) stack[k] = from(results.traces[k]);
}

void stdp_consolidate_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  const auto weight = arguments.take<Tensor>();
  Consolidation consolidation{arguments.take<Tensor>(), 0, 0};
  SpikeArguments spikes(arguments);
  consolidation.on = arguments.take<double>();
  consolidation.off = arguments.take<double>();
  const RuleArguments rule_arguments(arguments);
  Check check("stdp_consolidate");
  const Rule rule = rule_arguments.checked(check);
  check_tensors(check, weight, spikes, rule);
  check.tensor("functional", consolidation.functional, {"SJI"}, {ScalarType::Bool});
  check.thresholds(consolidation.on, consolidation.off);
  const Results results = run(check, weight, std::move(spikes), rule, false, consolidation);
  stack[0] = from(results.weight);
  for (int k = 0; k < 5; ++k) stack[1 + k] = from(results.traces[k]);
  stack[6] = from(results.functional);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) {
  m.impl("stdp", &stdp_cpu);
  m.impl("stdp_", &stdp_in_place_cpu);
  m.impl("stdp_consolidate", &stdp_consolidate_cpu);
}
