// What csrc/cuda/plan_routes.cu calls, for emulated_ops.py; and, for test_far.py, the same with a mask that is not
// there.
#include "cuda/plan_routes.cuh"

#include "far.h"
#include "server.h"

EMULATED(plan_routes_scratch, artsy::cuda::plan_routes_scratch)
EMULATED(plan_routes_count, artsy::cuda::plan_routes_count)
EMULATED(plan_routes_scatter, artsy::cuda::plan_routes_scatter)

// A plan of the first and the last cell of the mask. Of each launch the blocks run that have to do with these.
static void far_plan(int64_t B, int64_t S, int64_t P, int64_t* offsets, int64_t* sample_offsets, bool* overflow,
                     int64_t* sample, int64_t* subnetwork, int64_t* order) {
  using namespace artsy::cuda;
  const far::Tensor<uint8_t> mask(B * S);
  const far::Tensor<int64_t> scratch(plan_routes_scratch(B, S));
  mask.data[0] = mask.data[B * S - 1] = 1;
  const int64_t last_of_columns = ceil_div(S, plan::kThreads) - 1;  // the scan has the columns, then the rows
  artsy::emulation::only_blocks = {0, last_of_columns, last_of_columns + 1, -1};
  plan_routes_count(mask.data, B, S, P, scratch.data, offsets, sample_offsets, overflow, {});
  plan_routes_scatter(mask.data, B, S, scratch.data, offsets, sample_offsets, P, sample, subnetwork, order, {});
}
EMULATED(far_plan, far_plan)
