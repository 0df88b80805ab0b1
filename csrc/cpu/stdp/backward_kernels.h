// stdp_backward for one instruction set; no include guard: each_isa.h includes it once for each.
#include "kernels.h"
#include "side.h"
#include "side_events.h"
#include "stepwise_backward.h"
#include "summed_backward.h"

template <class Real>
void run_stdp_backward(const Problem<Real>& p, const Gradients<Real>& g) {
  const bool arrives = g.result || g.traces.eligibility;
  if (p.T * p.S * p.J * p.I > 0 && p.rule.reads_weights() && arrives)
    StepwiseBackward<Real>(p, g).run();
  else
    SummedBackward<Real>(p, g).run();
}
