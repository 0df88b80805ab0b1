// How the ops of stdp take their arguments: from a boxed call to a checked problem.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../arguments.h"
#include "problem.h"

namespace artsy::stdp {

// Takes the arguments of a boxed call one after the other.
class Stack {
 public:
  explicit Stack(const StableIValue* next) : next_(next) {}
  template <class T>
  T take() {
    return torch::stable::detail::to<T>(*next_++);
  }

 private:
  const StableIValue* next_;
};

using MaybeTensor = std::optional<Tensor>;

struct SpikeArguments {
  explicit SpikeArguments(Stack& stack)
      : pre(stack.take<Tensor>()),
        post(stack.take<Tensor>()),
        a_plus(stack.take<Tensor>()),
        a_minus(stack.take<Tensor>()) {
    for (auto& trace : traces) trace = stack.take<MaybeTensor>();
    modulation = stack.take<MaybeTensor>();
    mask = stack.take<MaybeTensor>();
  }

  Tensor pre, post, a_plus, a_minus;
  MaybeTensor traces[5];
  MaybeTensor modulation, mask;
};

struct RuleArguments {
  explicit RuleArguments(Stack& stack) {
    for (double* number : {&decay_pre, &decay_post, &gain_pre, &gain_post, &x_target}) *number = stack.take<double>();
    for (std::string* word : {&pairing, &timing, &dependence}) *word = stack.take<std::string>();
    exponent = stack.take<double>();
    evaluate = stack.take<std::string>();
    for (double* number : {&w_min, &w_max}) *number = stack.take<double>();
    for (std::string* word : {&clamp, &reduction}) *word = stack.take<std::string>();
    weight_decay = stack.take<double>();
    eligibility = stack.take<std::optional<double>>();
    modulation_delay = stack.take<int64_t>();
    triplet = stack.take<std::optional<std::vector<double>>>();
  }

  double decay_pre, decay_post, gain_pre, gain_post, x_target, exponent, w_min, w_max, weight_decay;
  std::string pairing, timing, dependence, evaluate, clamp, reduction;
  std::optional<double> eligibility;
  int64_t modulation_delay;
  std::optional<std::vector<double>> triplet;

  Rule checked(const Check& check) const {
    const auto unit = [&](const char* name, double value) {
      check.require(value >= 0 && value <= 1, std::string(name) + " must be in [0, 1], got " + std::to_string(value));
    };
    const auto finite = [&](const char* name, double value) {
      check.require(std::isfinite(value), std::string(name) + " must be finite, got " + std::to_string(value));
    };
    unit("decay_pre", decay_pre);
    unit("decay_post", decay_post);
    unit("weight_decay", weight_decay);
    if (eligibility) unit("eligibility", *eligibility);
    finite("gain_pre", gain_pre);
    finite("gain_post", gain_post);
    finite("x_target", x_target);
    finite("exponent", exponent);
    check.require(exponent >= 0, "exponent must be >= 0, got " + std::to_string(exponent));
    check.require(w_min <= w_max,
                  "w_min must be <= w_max, got w_min=" + std::to_string(w_min) + ", w_max=" + std::to_string(w_max));
    check.require(modulation_delay == 0 || modulation_delay == 1,
                  "modulation_delay must be 0 or 1, got " + std::to_string(modulation_delay));

    Rule rule{};
    rule.decay_pre = decay_pre, rule.decay_post = decay_post;
    rule.gain_pre = gain_pre, rule.gain_post = gain_post;
    rule.x_target = x_target;
    rule.nearest = check.word("pairing", pairing, {"all", "nearest"});
    rule.exclusive = check.word("timing", timing, {"inclusive", "exclusive"});
    rule.dependence =
        static_cast<Dependence>(check.word("dependence", dependence, {"none", "proportional", "soft", "hard"}));
    rule.exponent = exponent;
    rule.evaluate_each_step = check.word("evaluate", evaluate, {"call", "step"});
    rule.w_min = w_min, rule.w_max = w_max;
    rule.clamp = static_cast<Clamp>(check.word("clamp", clamp, {"never", "end", "step"}));
    rule.mean = check.word("reduction", reduction, {"sum", "mean"});
    rule.weight_decay = weight_decay;
    rule.eligibility = eligibility;
    rule.delayed = modulation_delay == 1;
    check.require(rule.dependence != Dependence::soft || (std::isfinite(w_min) && std::isfinite(w_max)),
                  "soft bounds need finite w_min and w_max, got w_min=" + std::to_string(w_min) +
                      ", w_max=" + std::to_string(w_max));
    if (triplet) {
      check.require(triplet->size() == 4, "triplet must be four numbers, got " + std::to_string(triplet->size()));
      const auto& [pre_slow, post_slow, a_plus_3, a_minus_3] = *reinterpret_cast<const double (*)[4]>(triplet->data());
      unit("triplet.decay_pre_slow", pre_slow);
      unit("triplet.decay_post_slow", post_slow);
      finite("triplet.a_plus_3", a_plus_3);
      finite("triplet.a_minus_3", a_minus_3);
      rule.triplet = {pre_slow, post_slow, a_plus_3, a_minus_3};
    }
    return rule;
  }
};

constexpr std::initializer_list<ScalarType> kSpikeTypes = {ScalarType::Bool,   ScalarType::Byte,     ScalarType::Float,
                                                           ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
constexpr const char* kTraceNames[] = {"pre", "post", "pre_slow", "post_slow", "eligibility"};

// As artsy_ext/ops/stdp/__init__.py, `_arguments`. Drops the traces that the rule does not keep.
inline void check_tensors(Check& check, const Tensor& weight, SpikeArguments& given, const Rule& rule) {
  const ScalarType real = weight.scalar_type();
  check.tensor("weight", weight, {"SJI"}, {ScalarType::Float, ScalarType::Double});
  check.tensor("pre", given.pre, {"TBI", "TBSI"}, kSpikeTypes);
  check.tensor("post", given.post, {"TBSJ"}, kSpikeTypes);
  check.tensor("a_plus", given.a_plus, {"S"}, {real});
  check.tensor("a_minus", given.a_minus, {"S"}, {real});

  const std::string_view pre_form = given.pre.dim() == 3 ? "BI" : "BSI";
  const std::string_view forms[] = {pre_form, "BSJ", pre_form, "BSJ", "BSJI"};
  const bool slow = rule.triplet.has_value(), kept[] = {true, true, slow, slow, rule.eligibility.has_value()};
  bool any = false;
  for (const auto& trace : given.traces) any |= trace.has_value();
  for (int k = 0; any && k < 5; ++k) {
    const std::string name = std::string("traces.") + kTraceNames[k];
    if (!kept[k]) {
      given.traces[k].reset();
    } else if (given.traces[k]) {
      check.tensor(name, *given.traces[k], {forms[k]}, {real});
    } else {
      check.fail(name + " must be given as the rule keeps it, got None");
    }
  }
  if (given.modulation) check.tensor("modulation", *given.modulation, {"TB", "TBS"}, {real});
  if (given.mask) check.tensor("mask", *given.mask, {"BS"}, {ScalarType::Bool});
}

// Spikes as the kernels read them: contiguous, one byte each or in the type of the weights.
inline Tensor readable_spikes(const Tensor& spikes, ScalarType real) {
  const ScalarType type = spikes.scalar_type();
  const bool bytes = type == ScalarType::Bool || type == ScalarType::Byte;
  return made_contiguous(bytes || type == real ? spikes : torch::stable::to(spikes, real));
}

inline Spikes pointer_to(const Tensor& spikes) {
  const ScalarType type = spikes.scalar_type();
  return {spikes.const_data_ptr(), type == ScalarType::Bool || type == ScalarType::Byte, type == ScalarType::Bool};
}

// Everything as the kernels read it.
inline void make_readable(SpikeArguments& given, ScalarType real) {
  given.pre = readable_spikes(given.pre, real);
  given.post = readable_spikes(given.post, real);
  given.a_plus = made_contiguous(given.a_plus);
  given.a_minus = made_contiguous(given.a_minus);
  for (MaybeTensor* tensor : {&given.traces[0], &given.traces[1], &given.traces[2], &given.traces[3], &given.traces[4],
                              &given.modulation, &given.mask})
    if (*tensor) *tensor = made_contiguous(**tensor);
}

// Without results.
template <class Real>
Problem<Real> problem_of(const Check& check, const Rule& rule, const Tensor& weight, const SpikeArguments& given) {
  Problem<Real> p{};
  p.T = check.size('T'), p.B = check.size('B'), p.S = check.size('S'), p.J = check.size('J'), p.I = check.size('I');
  p.rule = rule;
  p.pre = pointer_to(given.pre), p.post = pointer_to(given.post);
  p.own_pre = given.pre.dim() == 4;
  const auto read = [](const MaybeTensor& tensor) {
    return tensor ? static_cast<const Real*>(tensor->const_data_ptr()) : nullptr;
  };
  p.a_plus = read(given.a_plus), p.a_minus = read(given.a_minus);
  p.modulation = read(given.modulation);
  p.own_modulation = given.modulation && given.modulation->dim() == 3;
  p.mask = given.mask ? static_cast<const uint8_t*>(given.mask->const_data_ptr()) : nullptr;
  p.given = {read(given.traces[0]), read(given.traces[1]), read(given.traces[2]), read(given.traces[3]),
             read(given.traces[4])};
  p.weight = static_cast<const Real*>(weight.const_data_ptr());
  return p;
}

}  // namespace artsy::stdp
