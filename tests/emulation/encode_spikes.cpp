// What csrc/cuda/encode_spikes.cu calls, for emulated_ops.py: the type of x, the bytes of a spike.
#include "cuda/encode_spikes.cuh"

#include "server.h"

EMULATED(float32_1, artsy::cuda::encode_spikes<float, uint8_t>)
EMULATED(float32_2, artsy::cuda::encode_spikes<float, uint16_t>)
EMULATED(float32_4, artsy::cuda::encode_spikes<float, uint32_t>)
EMULATED(float32_8, artsy::cuda::encode_spikes<float, uint64_t>)
EMULATED(float64_1, artsy::cuda::encode_spikes<double, uint8_t>)
EMULATED(float64_2, artsy::cuda::encode_spikes<double, uint16_t>)
EMULATED(float64_4, artsy::cuda::encode_spikes<double, uint32_t>)
EMULATED(float64_8, artsy::cuda::encode_spikes<double, uint64_t>)
