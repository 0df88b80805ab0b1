// What the ops stdp, stdp_ and stdp_consolidate do around the computation, on every device. A Device has
//
//     Check check(const char* op, const Tensor& weight);
//     void compute(const Problem<Real>&, const Tensor& weight);      for float and double
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "call.h"

namespace artsy::stdp {

using torch::stable::detail::from;

struct Consolidation {
  Tensor functional;
  double on, off;
};

struct Results {
  Tensor weight, traces[5], functional;
};

template <class Real, class Device>
void compute(const Check& check, const Rule& rule, const Tensor& weight, const SpikeArguments& given,
             const Consolidation* consolidation, Results& results) {
  Problem<Real> p = problem_of<Real>(check, rule, weight, given);
  const auto written = [](Tensor& tensor) { return static_cast<Real*>(tensor.mutable_data_ptr()); };
  auto& traces = results.traces;
  p.traces = {written(traces[0]), written(traces[1]), written(traces[2]), written(traces[3]), written(traces[4])};
  p.result = written(results.weight);
  if (consolidation) {
    p.functional = static_cast<const uint8_t*>(consolidation->functional.const_data_ptr());
    p.functional_result = static_cast<uint8_t*>(results.functional.mutable_data_ptr());
    p.on = Real(consolidation->on), p.off = Real(consolidation->off);
  }
  Device::compute(p, weight);
}

template <class Device>
Results run(const Check& check, const Tensor& weight, SpikeArguments given, const Rule& rule, bool in_place,
            std::optional<Consolidation> consolidation) {
  const ScalarType real = weight.scalar_type();
  make_readable(given, real);
  if (consolidation) consolidation->functional = made_contiguous(consolidation->functional);

  const int64_t B = check.size('B'), S = check.size('S'), J = check.size('J'), I = check.size('I');
  const auto fresh = [&](bool kept, const std::vector<int64_t>& shape, ScalarType type) {
    return torch::stable::new_empty(weight, kept ? shape : std::vector<int64_t>{0}, type);
  };
  const std::vector<int64_t> pre = given.pre.dim() == 3 ? std::vector{B, I} : std::vector{B, S, I}, post{B, S, J};
  const bool slow = rule.triplet.has_value();
  // A rule that compares with the weights it found needs them beside those it writes.
  const bool onto_itself = in_place && weight.is_contiguous() && rule.dependence == Dependence::none;
  const Tensor readable = made_contiguous(weight);
  Results results{onto_itself ? weight : fresh(true, {S, J, I}, real),
                  {fresh(true, pre, real), fresh(true, post, real), fresh(slow, pre, real), fresh(slow, post, real),
                   fresh(rule.eligibility.has_value(), {B, S, J, I}, real)},
                  fresh(consolidation.has_value(), {S, J, I}, ScalarType::Bool)};
  const Consolidation* state = consolidation ? &*consolidation : nullptr;
  if (real == ScalarType::Float)
    compute<float, Device>(check, rule, readable, given, state, results);
  else
    compute<double, Device>(check, rule, readable, given, state, results);
  return results;
}

// Autograd learns of a change through PyTorch's own in-place ops; this one touches no element.
inline void mark_changed(const Tensor& tensor) {
  Tensor whole = tensor;
  Tensor nothing = torch::stable::narrow(whole, 0, 0, 0);
  torch::stable::zero_(nothing);
}

template <class Device>
void stdp(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  const auto weight = arguments.take<Tensor>();
  SpikeArguments spikes(arguments);
  const RuleArguments rule_arguments(arguments);
  auto check = Device::check("stdp", weight);
  const Rule rule = rule_arguments.checked(check);
  check_tensors(check, weight, spikes, rule);
  const Results results = run<Device>(check, weight, std::move(spikes), rule, false, std::nullopt);
  stack[0] = from(results.weight);
  for (int k = 0; k < 5; ++k) stack[1 + k] = from(results.traces[k]);
}

template <class Device>
void stdp_in_place(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  auto weight = arguments.take<Tensor>();
  SpikeArguments spikes(arguments);
  const RuleArguments rule_arguments(arguments);
  auto check = Device::check("stdp_", weight);
  const Rule rule = rule_arguments.checked(check);
  check_tensors(check, weight, spikes, rule);
  const Results results = run<Device>(check, weight, std::move(spikes), rule, true, std::nullopt);
  if (results.weight.data_ptr() == weight.data_ptr())
    mark_changed(weight);
  else
    torch::stable::copy_(weight, results.weight);
  for (int k = 0; k < 5; ++k) stack[k] = from(results.traces[k]);
}

template <class Device>
void stdp_consolidate(StableIValue* stack, uint64_t, uint64_t) {
  Stack arguments(stack);
  const auto weight = arguments.take<Tensor>();
  Consolidation consolidation{arguments.take<Tensor>(), 0, 0};
  SpikeArguments spikes(arguments);
  consolidation.on = arguments.take<double>();
  consolidation.off = arguments.take<double>();
  const RuleArguments rule_arguments(arguments);
  auto check = Device::check("stdp_consolidate", weight);
  const Rule rule = rule_arguments.checked(check);
  check_tensors(check, weight, spikes, rule);
  check.tensor("functional", consolidation.functional, {"SJI"}, {ScalarType::Bool});
  check.thresholds(consolidation.on, consolidation.off);
  const Results results = run<Device>(check, weight, std::move(spikes), rule, false, consolidation);
  stack[0] = from(results.weight);
  for (int k = 0; k < 5; ++k) stack[1 + k] = from(results.traces[k]);
  stack[6] = from(results.functional);
}

}  // namespace artsy::stdp
