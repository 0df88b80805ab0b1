// What the update of one step counts in the final weight, for rules that do not read the weights between steps.
#pragma once

#include "problem.h"

namespace artsy::stdp {

// factor[t, b, s]; null stands for 1.
template <class Real>
struct Factors {
  const Real* data = nullptr;
  int64_t per_step = 0, per_sample = 0, per_subnetwork = 0;

  const Real* at(int64_t t, int64_t b, int64_t s) const {
    return data ? data + t * per_step + b * per_sample + s * per_subnetwork : nullptr;
  }
};

// The pairs of step t reach the weight through modulation and the decay of the weight after t; with an eligibility
// trace through every later step that reads the trace. Summed backwards in time, so that all of it is one factor per
// step.
template <class Real>
class WeightFactors {
 public:
  explicit WeightFactors(const Problem<Real>& p) {
    const Rule& rule = p.rule;
    const double keep = 1 - rule.weight_decay;
    kept_ = Real(std::pow(keep, double(p.T)));
    if (p.S == 0 || (!p.modulation && !rule.eligibility && rule.weight_decay == 0)) return;

    const int64_t S = p.own_modulation ? p.S : 1;
    data_ = unwritten<Real>(p.T * p.B * S);
    reach_ = unwritten<Real>(p.B * S);
    factors_ = {data_.get(), p.B * S, S, p.own_modulation};
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t s = 0; s < S; ++s) {
        double decayed = p.share(), later = 0;  // later: what the trace after step t will count
        for (int64_t t = p.T - 1; t >= 0; --t, decayed *= keep) {
          const double now = decayed * double(p.modulation_at(t, b, s));
          const double through = rule.eligibility ? now + *rule.eligibility * later : now;
          data_[(t * p.B + b) * S + s] = Real(rule.eligibility && rule.delayed ? later : through);
          later = through;
        }
        reach_[b * S + s] = Real(rule.delayed ? later : rule.eligibility.value_or(0) * later);
      }
  }

  Factors<Real> factors() const { return factors_; }
  // What is left of the first weight.
  Real kept() const { return kept_; }
  // What the eligibility before the first step counts.
  Real reach(int64_t b, int64_t s) const { return reach_[b * factors_.per_sample + s * factors_.per_subnetwork]; }

 private:
  std::unique_ptr<Real[]> data_, reach_;
  Factors<Real> factors_;
  Real kept_ = 1;
};

// What the pairs of a step count in the eligibility after the last one.
template <class Real>
class EligibilityFactors {
 public:
  explicit EligibilityFactors(const Problem<Real>& p) : data_(unwritten<Real>(p.T)) {
    double decayed = 1;
    for (int64_t t = p.T - 1; t >= 0; --t, decayed *= *p.rule.eligibility) data_[t] = Real(decayed);
    kept_ = Real(decayed);
  }

  Factors<Real> factors() const { return {data_.get(), 1, 0, 0}; }
  Real kept() const { return kept_; }

 private:
  std::unique_ptr<Real[]> data_;
  Real kept_;
};

}  // namespace artsy::stdp
