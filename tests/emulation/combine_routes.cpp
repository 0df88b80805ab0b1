// What csrc/cuda/combine_routes.cu calls, for emulated_ops.py.
#include "cuda/combine_routes.cuh"

#include "server.h"

EMULATED(float32, artsy::cuda::combine_routes<float>)
EMULATED(float64, artsy::cuda::combine_routes<double>)
EMULATED(float16, artsy::cuda::combine_routes<__half>)
EMULATED(bfloat16, artsy::cuda::combine_routes<__nv_bfloat16>)
EMULATED(backward_float32, artsy::cuda::combine_routes_backward<float>)
EMULATED(backward_float64, artsy::cuda::combine_routes_backward<double>)
EMULATED(backward_float16, artsy::cuda::combine_routes_backward<__half>)
EMULATED(backward_bfloat16, artsy::cuda::combine_routes_backward<__nv_bfloat16>)
