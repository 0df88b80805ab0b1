// What stdp has to compute, with everything resolved that does not depend on the instruction set. Notation as in
// artsy_ext.ops.stdp: x and y are the traces of the pre- and post-synaptic spikes, m is modulation times mask.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../scratch.h"

namespace artsy::stdp {

enum class Dependence { none, proportional, soft, hard };
enum class Clamp { never, end, step };

struct Triplet {
  double decay_pre_slow, decay_post_slow, a_plus, a_minus;
};

// STDPRule without its amplitudes, which are tensors.
struct Rule {
  double decay_pre, decay_post, gain_pre, gain_post, x_target;
  bool nearest, exclusive;
  Dependence dependence;
  double exponent;
  bool evaluate_each_step;
  double w_min, w_max;
  Clamp clamp;
  bool mean;
  double weight_decay;
  std::optional<double> eligibility;
  bool delayed;
  std::optional<Triplet> triplet;

  // Whether a step looks at the weights that the step before left; otherwise the steps can be summed in any order.
  bool reads_weights() const {
    return (evaluate_each_step && dependence != Dependence::none) || (clamp == Clamp::step && bounded());
  }
  bool bounded() const { return w_min > -INFINITY || w_max < INFINITY; }
};

// Spikes as they came: one byte each, or in the type of the weights.
struct Spikes {
  const void* data;
  bool bytes;
  bool binary;  // known to be 0 or 1

  int64_t size(size_t real) const { return bytes ? 1 : static_cast<int64_t>(real); }
};

template <class Real>
struct TracePointers {
  Real *pre, *post, *pre_slow, *post_slow, *eligibility;
};

template <class Real>
struct Problem {
  int64_t T, B, S, J, I;
  Rule rule;
  Spikes pre, post;
  bool own_pre;                     // pre is [T, B, S, I], not [T, B, I]
  const Real *a_plus, *a_minus;     // [S]
  const Real* modulation;           // [T, B] or [T, B, S], or null
  bool own_modulation;              // it is [T, B, S]
  const uint8_t* mask;              // [B, S] or null
  TracePointers<const Real> given;  // traces of an earlier call, or null
  TracePointers<Real> traces;       // the results; they start as the given ones (or 0), the eligibility is unwritten

  const Real* weight;
  Real* result;  // may be weight itself

  // The gradient of the weights is the same sum, with the gradient that arrives at the new weights in place of W, and
  // that gradient times f' in place of f; likewise for what arrives at the eligibility. Null otherwise.
  const Real* arriving = nullptr;
  const Real* arriving_eligibility = nullptr;

  // stdp_consolidate, or null
  const uint8_t* functional = nullptr;
  uint8_t* functional_result = nullptr;
  Real on = 0, off = 0;

  int64_t pre_width() const { return own_pre ? S * I : I; }
  bool masked(int64_t b, int64_t s) const { return mask && !mask[b * S + s]; }
  Real modulation_at(int64_t t, int64_t b, int64_t s) const {
    if (!modulation) return 1;
    return own_modulation ? modulation[(t * B + b) * S + s] : modulation[t * B + b];
  }
  Real share() const { return rule.mean && B > 0 ? Real(1) / Real(B) : Real(1); }
  bool uniform_amplitudes() const {
    for (int64_t s = 1; s < S; ++s)
      if (a_plus[s] != a_plus[0] || a_minus[s] != a_minus[0]) return false;
    return true;
  }
};

template <class T>
std::unique_ptr<T[]> unwritten(int64_t size) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(size));
}

}  // namespace artsy::stdp
