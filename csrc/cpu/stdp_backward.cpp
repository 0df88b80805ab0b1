// stdp_backward and stdp_consolidate_backward on the CPU: checks the arguments, then computes with the kernels of
// stdp/, compiled for each instruction set.
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
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "stdp/call.h"
#include "stdp/factors.h"
#include "stdp/gradients.h"
#include "stdp/problem.h"

#define ARTSY_KERNELS "stdp/backward_kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;
using namespace artsy::stdp;
using torch::stable::detail::from;

constexpr const char* kNames[] = {"weight",
                                  "pre",
                                  "post",
                                  "a_plus",
                                  "a_minus",
                                  "traces.pre",
                                  "traces.post",
                                  "traces.pre_slow",
                                  "traces.post_slow",
                                  "traces.eligibility",
                                  "modulation",
                                  "mask"};
constexpr int kArguments = 12;
using Arguments = std::array<MaybeTensor, kArguments>;

// Null where nothing but 0 arrives: autograd fills in for results that were not used.
template <class Real>
const Real* arriving(const Tensor& gradient) {
  const auto* data = static_cast<const Real*>(gradient.const_data_ptr());
  const int64_t size = gradient.numel();
  return std::all_of(data, data + size, [](Real value) { return value == 0; }) ? nullptr : data;
}

template <class Real>
void compute(const Check& check, const Rule& rule, const Tensor& weight, const SpikeArguments& given,
             const std::vector<Tensor>& arrive, const Arguments& results) {
  const Problem<Real> p = problem_of<Real>(check, rule, weight, given);
  const auto data = [&](int k) { return results[k] ? static_cast<Real*>(results[k]->mutable_data_ptr()) : nullptr; };
  const auto trace = [&](int k) { return arriving<Real>(arrive[k]); };
  const Gradients<Real> g{arriving<Real>(arrive[0]),
                          {trace(1), trace(2), trace(3), trace(4), trace(5)},
                          data(0),
                          data(1),
                          data(2),
                          data(3),
                          data(4),
                          data(10),
                          {data(5), data(6), data(7), data(8), data(9)}};
  ARTSY_DISPATCH(run_stdp_backward(p, g));
}

Arguments arguments_of(const Tensor& weight, const SpikeArguments& given) {
  return {weight,          given.pre,       given.post,      given.a_plus,    given.a_minus,    given.traces[0],
          given.traces[1], given.traces[2], given.traces[3], given.traces[4], given.modulation, given.mask};
}

// Gradients of the arguments that are asked for, in their order; needs has one flag for each of kNames.
std::vector<Tensor> run(Check& check, std::vector<Tensor> arrive, const Tensor& weight, SpikeArguments given,
                        const Rule& rule, const std::vector<bool>& needs) {
  const ScalarType real = weight.scalar_type();
  const Arguments before = arguments_of(weight, given);
  check_tensors(check, weight, given, rule);
  const Arguments used = arguments_of(weight, given);

  const std::string_view pre = given.pre.dim() == 4 ? "BSI" : "BI", forms[] = {"SJI", pre, "BSJ", pre, "BSJ", "BSJI"};
  const bool slow = rule.triplet.has_value(), kept[] = {true, true, true, slow, slow, rule.eligibility.has_value()};
  for (int k = 0; k < 6; ++k) {
    const std::string name = "grads[" + std::to_string(k) + "]";
    if (kept[k])
      check.tensor(name, arrive[k], {forms[k]}, {real});
    else
      check.require(arrive[k].numel() == 0, name + " must be empty as the result is, got " + shape_of(arrive[k]));
    arrive[k] = made_contiguous(arrive[k]);
  }

  Arguments results, computed;
  for (int k = 0; k < kArguments; ++k) {
    if (!needs[k]) continue;
    const std::string refused = std::string("needs must not ask for ") + kNames[k] + ", which is ";
    check.require(before[k].has_value(), refused + "absent");
    const ScalarType type = before[k]->scalar_type();
    check.require(type != ScalarType::Bool && type != ScalarType::Byte, refused + dtype_name(type));
    std::vector<int64_t> shape;
    for (int64_t axis = 0; axis < before[k]->dim(); ++axis) shape.push_back(before[k]->size(axis));
    results[k] = torch::stable::empty(shape, real);
    if (used[k])
      computed[k] = results[k];
    else  // a trace that the rule does not keep
      torch::stable::zero_(*results[k]);
  }

  make_readable(given, real);
  const Tensor readable = made_contiguous(weight);
  if (real == ScalarType::Float)
    compute<float>(check, rule, readable, given, arrive, computed);
  else
    compute<double>(check, rule, readable, given, arrive, computed);
  std::vector<Tensor> found;
  for (int k = 0; k < kArguments; ++k)
    if (results[k]) found.push_back(torch::stable::to(*results[k], before[k]->scalar_type()));
  return found;
}

void backward(const char* op, bool consolidates, StableIValue* stack) {
  Stack arguments(stack);
  auto arrive = arguments.take<std::vector<Tensor>>();
  const auto weight = arguments.take<Tensor>();
  if (consolidates) arguments.take<Tensor>();  // has no part in it
  SpikeArguments spikes(arguments);
  if (consolidates) arguments.take<double>(), arguments.take<double>();
  const RuleArguments rule_arguments(arguments);
  auto needs = arguments.take<std::vector<bool>>();

  Check check(op);
  const Rule rule = rule_arguments.checked(check);
  const auto counted = [&](const char* name, size_t given, size_t expected) {
    check.require(given == expected,
                  name + (" must have " + std::to_string(expected)) + " entries, got " + std::to_string(given));
  };
  counted("grads", arrive.size(), consolidates ? 7 : 6);
  counted("needs", needs.size(), kArguments + consolidates);
  if (consolidates) {
    check.require(!needs[1], "needs must not ask for functional, which is bool");
    needs.erase(needs.begin() + 1);
  }
  stack[0] = from(run(check, std::move(arrive), weight, std::move(spikes), rule, needs));
}

void stdp_backward_cpu(StableIValue* stack, uint64_t, uint64_t) { backward("stdp_backward", false, stack); }

void stdp_consolidate_backward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  backward("stdp_consolidate_backward", true, stack);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) {
  m.impl("stdp_backward", &stdp_backward_cpu);
  m.impl("stdp_consolidate_backward", &stdp_consolidate_backward_cpu);
}
