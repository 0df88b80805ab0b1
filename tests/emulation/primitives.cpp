// Every kernel of primitives.cuh as launch_<kernel>(grid x, y, z, block x, y, z, bytes of shared memory, its own
// arguments...).
#include "kernels/primitives.cuh"

#include "server.h"

template <auto kernel, class... Parameters>
struct Launcher {
  static void launch(int64_t gx, int64_t gy, int64_t gz, int64_t bx, int64_t by, int64_t bz, int64_t bytes,
                     Parameters... parameters) {
    artsy::cuda::launch("a kernel of the tests", kernel, {gx, gy, gz}, {bx, by, bz}, bytes, nullptr, parameters...);
  }
};
template <auto kernel, class... Parameters>
constexpr Launcher<kernel, Parameters...> launcher(void (*)(Parameters...)) {
  return {};
}
#define EMULATED_KERNEL(name) \
  EMULATED(launch_##name, decltype(launcher<&artsy::cuda::name##_kernel>(&artsy::cuda::name##_kernel))::launch)

EMULATED_KERNEL(atomic)
EMULATED_KERNEL(barrier)
EMULATED_KERNEL(bfloat16)
EMULATED_KERNEL(copy)
EMULATED_KERNEL(fragments)
EMULATED_KERNEL(fresh)
EMULATED_KERNEL(half)
EMULATED_KERNEL(index)
EMULATED_KERNEL(round)
EMULATED_KERNEL(shuffle)
EMULATED_KERNEL(vote)
EMULATED_KERNEL(widen)
