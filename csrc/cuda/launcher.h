// What the launchers share: argument checks as artsy_ext/ops/_check.py words them, and the device and stream that a
// kernel runs on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "../cpu/arguments.h"
#include "port.cuh"

namespace artsy::cuda {

using artsy::made_contiguous;
using artsy::ScalarType;
using artsy::shape_of;
using artsy::Tensor;

#ifdef __CUDACC__
#define ARTSY_DEVICE CUDA
inline constexpr auto kDevice = DeviceType::CUDA;

// The device of a tensor is the current one, and its current stream is the one to launch on.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

  // One number from the device; waits for what was launched before.
  template <class T>
  T read(const T* from) const {
    T value;
    STD_CUDA_CHECK(cudaMemcpyAsync(&value, from, sizeof(value), cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return value;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};
#else
// Under the emulation a launcher serves tensors of the CPU, and a launch has ended when it returns.
#define ARTSY_DEVICE CPU
inline constexpr auto kDevice = DeviceType::CPU;

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t stream() const { return {}; }

  template <class T>
  T read(const T* from) const {
    return *from;
  }
};
#endif

// Checks the arguments of one op.
class Check : public artsy::Check {
 public:
  // first: the tensor that gives the device.
  Check(std::string op, const Tensor& first) : artsy::Check(std::move(op), kDevice, first.get_device_index()) {}

  using artsy::Check::tensor;

  // form: the shape as the docstring has it, with the sizes that are given by now ("[P] with P=4").
  void tensor(const std::string& name, const Tensor& value, bool fits, const std::string& form,
              std::initializer_list<ScalarType> dtypes) const {
    require(fits, name + " must be " + form + ", got " + shape_of(value));
    dtype(name, value.scalar_type(), dtypes);
    device(name, value);
  }

  void vector(const std::string& name, const Tensor& value, const std::string& dimension, int64_t size,
              ScalarType dtype) const {
    tensor(name, value, value.dim() == 1 && value.size(0) == size,
           "[" + dimension + "] with " + dimension + "=" + std::to_string(size), {dtype});
  }
};

// Calls visit(T{}) with the element type that kernels have for a floating dtype.
template <class Visit>
void for_element(ScalarType type, Visit visit) {
  switch (type) {
    case ScalarType::Float:
      return visit(float{});
    case ScalarType::Double:
      return visit(double{});
    case ScalarType::Half:
      return visit(__half{});
    default:
      return visit(__nv_bfloat16{});
  }
}

template <class T>
T* data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace artsy::cuda
