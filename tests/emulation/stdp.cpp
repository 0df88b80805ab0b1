// What csrc/cuda/stdp.cu calls, for emulated_ops.py.
#include "cuda/stdp.cuh"

#include "server.h"
#include "stdp_problem.h"

namespace {

template <class Real>
int64_t scratch(const int64_t* sizes, const double* rule, const void* pre, const void* post, const Real* a_plus,
                const Real* a_minus, const Real* x, const Real* y, const Real* x_slow, const Real* y_slow,
                const Real* e, const Real* modulation, const uint8_t* mask, const Real* weight,
                const uint8_t* functional) {
  return artsy::cuda::stdp_scratch(
      problem(sizes, rule, pre, post, a_plus, a_minus, x, y, x_slow, y_slow, e, modulation, mask, weight, functional));
}

template <class Real>
void run(const int64_t* sizes, const double* rule, const void* pre, const void* post, const Real* a_plus,
         const Real* a_minus, const Real* x, const Real* y, const Real* x_slow, const Real* y_slow, const Real* e,
         const Real* modulation, const uint8_t* mask, const Real* weight, const uint8_t* functional, Real* result,
         Real* new_x, Real* new_y, Real* new_x_slow, Real* new_y_slow, Real* new_e, uint8_t* new_functional,
         uint8_t* memory, cudaStream_t stream) {
  auto p =
      problem(sizes, rule, pre, post, a_plus, a_minus, x, y, x_slow, y_slow, e, modulation, mask, weight, functional);
  p.result = result, p.functional_result = new_functional;
  p.traces = {new_x, new_y, new_x_slow, new_y_slow, new_e};
  artsy::cuda::stdp(p, memory, stream);
}

}  // namespace

EMULATED(scratch_float32, scratch<float>)
EMULATED(scratch_float64, scratch<double>)
EMULATED(float32, run<float>)
EMULATED(float64, run<double>)
