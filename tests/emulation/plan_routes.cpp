// What csrc/cuda/plan_routes.cu calls, for emulated_ops.py.
#include "cuda/plan_routes.cuh"

#include "server.h"

EMULATED(plan_routes_scratch, artsy::cuda::plan_routes_scratch)
EMULATED(plan_routes_count, artsy::cuda::plan_routes_count)
EMULATED(plan_routes_scatter, artsy::cuda::plan_routes_scatter)
