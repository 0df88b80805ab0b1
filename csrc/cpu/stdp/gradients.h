// What stdp_backward has to compute, besides the problem itself.
#pragma once

#include "problem.h"

namespace artsy::stdp {

// What arrives: the gradients of the results; null stands for 0. And what is asked for: the gradients of the arguments;
// null where one is not. Those of weights are [S, J, I], those of spikes, traces and modulation as their arguments.
template <class Real>
struct Gradients {
  const Real* result;
  TracePointers<const Real> traces;

  Real *weight, *pre, *post, *a_plus, *a_minus, *modulation;
  TracePointers<Real> given;
};

}  // namespace artsy::stdp
