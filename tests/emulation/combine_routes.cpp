// What csrc/cuda/combine_routes.cu calls, for emulated_ops.py; and, for test_far.py, on rows that are not there.
#include "cuda/combine_routes.cuh"

#include "far.h"
#include "server.h"

EMULATED(float32, artsy::cuda::combine_routes<float>)
EMULATED(float64, artsy::cuda::combine_routes<double>)
EMULATED(float16, artsy::cuda::combine_routes<__half>)
EMULATED(bfloat16, artsy::cuda::combine_routes<__nv_bfloat16>)
EMULATED(backward_float32, artsy::cuda::combine_routes_backward<float>)
EMULATED(backward_float64, artsy::cuda::combine_routes_backward<double>)
EMULATED(backward_float16, artsy::cuda::combine_routes_backward<__half>)
EMULATED(backward_bfloat16, artsy::cuda::combine_routes_backward<__nv_bfloat16>)

// P samples with one pair each, counted = 0, 1, …, P: does the last number of the last row arrive, forward and
// backward? Only the last block of each launch runs. shift: by how many numbers the rows miss an address that divides
// by 16.
template <class T>
static bool far_rows(int64_t P, int64_t D, int64_t shift, const int64_t* counted, const bool* overflow) {
  using namespace artsy::cuda;
  const far::Tensor<T> ys(shift + P * D), outs(shift + P * D), grads(shift + P * D), grad_weight(P);
  T *const y = ys.data + shift, *const out = outs.data + shift, *const grad_y = grads.data + shift;
  const int64_t last = P * D - 1, first_of_row = P * D - D;
  y[first_of_row] = narrow<T>(2);
  y[last] = narrow<T>(3);
  artsy::emulation::only_blocks = {-1};
  combine_routes<T>(y, nullptr, nullptr, counted, counted, overflow, P, D, out, {});
  combine_routes_backward<T>(y, y, nullptr, counted, counted, overflow, P, P, D, grad_y, grad_weight.data, {});
  return widen(out[last]) == 3 && widen(grad_y[last]) == 3 && widen(grad_weight.data[P - 1]) == 2 * 2 + 3 * 3;
}
EMULATED(far_float32, far_rows<float>)
EMULATED(far_float64, far_rows<double>)
EMULATED(far_float16, far_rows<__half>)
EMULATED(far_bfloat16, far_rows<__nv_bfloat16>)
