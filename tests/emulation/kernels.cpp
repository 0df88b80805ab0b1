// The kernels that exist for the tests of the emulation itself.
#include "kernels/histogram.cuh"
#include "kernels/product.cuh"
#include "kernels/rotate.cuh"
#include "kernels/segments.cuh"
#include "server.h"

EMULATED(histogram, artsy::cuda::histogram)
EMULATED(product, artsy::cuda::product)
EMULATED(rotate, artsy::cuda::rotate)
EMULATED(segments, artsy::cuda::segments)
