// What csrc/cuda/consolidate.cu calls, for emulated_ops.py.
#include "cuda/consolidate.cuh"

#include "server.h"

EMULATED(float32, artsy::cuda::consolidate<float>)
EMULATED(float64, artsy::cuda::consolidate<double>)
