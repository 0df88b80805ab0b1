// What csrc/cuda/stdp.cu calls, for emulated_ops.py: a problem as numbers, the rule's fields, and tensors.
#include "cuda/stdp.cuh"

#include "server.h"

namespace {

using namespace artsy::stdp;

template <class Real>
Problem<Real> problem(const int64_t* sizes, const double* r, const void* pre, const void* post, const Real* a_plus,
                      const Real* a_minus, const Real* x, const Real* y, const Real* x_slow, const Real* y_slow,
                      const Real* e, const Real* modulation, const uint8_t* mask, const Real* weight,
                      const uint8_t* functional) {
  Problem<Real> p{};
  p.T = sizes[0], p.B = sizes[1], p.S = sizes[2], p.J = sizes[3], p.I = sizes[4];
  p.own_pre = sizes[5], p.own_modulation = sizes[6];
  p.pre = {pre, sizes[7] > 0, sizes[7] > 1}, p.post = {post, sizes[8] > 0, sizes[8] > 1};
  p.rule = {r[0],
            r[1],
            r[2],
            r[3],
            r[4],
            r[5] != 0,
            r[6] != 0,
            Dependence(int(r[7])),
            r[8],
            r[9] != 0,
            r[10],
            r[11],
            Clamp(int(r[12])),
            r[13] != 0,
            r[14],
            {},
            r[16] != 0,
            {}};
  if (r[15] >= 0) p.rule.eligibility = r[15];
  if (r[17] >= 0) p.rule.triplet = {r[17], r[18], r[19], r[20]};
  p.on = Real(r[21]), p.off = Real(r[22]);
  p.a_plus = a_plus, p.a_minus = a_minus;
  p.modulation = modulation, p.mask = mask;
  p.given = {x, y, x_slow, y_slow, e};
  p.weight = weight, p.functional = functional;
  return p;
}

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
