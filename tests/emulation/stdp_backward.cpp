// What csrc/cuda/stdp_backward.cu calls, for emulated_ops.py.
#include "cuda/stdp_backward.cuh"

#include "cuda/stdp.cuh"
#include "server.h"
#include "stdp_problem.h"

namespace {

template <class Real>
int64_t scratch(const int64_t* sizes, const double* r, const void* pre, const void* post, const Real* a_plus,
                const Real* a_minus, const Real* x, const Real* y, const Real* x_slow, const Real* y_slow,
                const Real* e, const Real* modulation, const uint8_t* mask, const Real* weight,
                const uint8_t* functional, const Real* result, const Real* new_x, const Real* new_y,
                const Real* new_x_slow, const Real* new_y_slow, const Real* new_e, Real* of_weight, Real* of_pre,
                Real* of_post, Real* of_a_plus, Real* of_a_minus, Real* of_x, Real* of_y, Real* of_x_slow,
                Real* of_y_slow, Real* of_e, Real* of_modulation) {
  const auto p =
      problem(sizes, r, pre, post, a_plus, a_minus, x, y, x_slow, y_slow, e, modulation, mask, weight, functional);
  const Gradients<Real> g = {
      result,        {new_x, new_y, new_x_slow, new_y_slow, new_e}, of_weight, of_pre, of_post, of_a_plus, of_a_minus,
      of_modulation, {of_x, of_y, of_x_slow, of_y_slow, of_e}};
  return artsy::cuda::stdp_backward_scratch(p, g);
}

template <class Real>
void run(const int64_t* sizes, const double* r, const void* pre, const void* post, const Real* a_plus,
         const Real* a_minus, const Real* x, const Real* y, const Real* x_slow, const Real* y_slow, const Real* e,
         const Real* modulation, const uint8_t* mask, const Real* weight, const uint8_t* functional, const Real* result,
         const Real* new_x, const Real* new_y, const Real* new_x_slow, const Real* new_y_slow, const Real* new_e,
         Real* of_weight, Real* of_pre, Real* of_post, Real* of_a_plus, Real* of_a_minus, Real* of_x, Real* of_y,
         Real* of_x_slow, Real* of_y_slow, Real* of_e, Real* of_modulation, uint8_t* memory, cudaStream_t stream) {
  const auto p =
      problem(sizes, r, pre, post, a_plus, a_minus, x, y, x_slow, y_slow, e, modulation, mask, weight, functional);
  const Gradients<Real> g = {
      result,        {new_x, new_y, new_x_slow, new_y_slow, new_e}, of_weight, of_pre, of_post, of_a_plus, of_a_minus,
      of_modulation, {of_x, of_y, of_x_slow, of_y_slow, of_e}};
  artsy::cuda::stdp_backward(p, g, memory, stream);
}

}  // namespace

EMULATED(scratch_float32, scratch<float>)
EMULATED(scratch_float64, scratch<double>)
EMULATED(float32, run<float>)
EMULATED(float64, run<double>)
