// stdp for one instruction set; no include guard: each_isa.h includes it once for each.
using namespace ::artsy::stdp;

#include "../simd.h"
#include "dependence.h"
#include "post_spikes.h"

// The new state of synapses [at, at + count), when their weights are final.
template <class Real>
inline void consolidate(const Problem<Real>& p, int64_t at, int64_t count) {
  if (!p.functional_result) return;
  for (int64_t k = at; k < at + count; ++k)
    p.functional_result[k] = std::abs(p.result[k]) >= (p.functional[k] ? p.off : p.on);
}

#include "stepwise.h"
#include "summed.h"

template <class Real>
void run_stdp(const Problem<Real>& p) {
  if (p.S > 0 && p.rule.reads_weights())
    Stepwise<Real>(p).run();
  else
    Summed<Real>(p).run();
}
