// Argument checks of compiled kernels, as artsy_ext/ops/_check.py has them: one line that names the argument, what was
// expected and what came.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace artsy {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    default:
      return torch::headeronly::toString(type);
  }
}

// As torch::stable::contiguous, which goes through the dispatcher even where there is nothing to do.
inline Tensor made_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

// Checks the arguments of one op. Dimensions are single letters ("SJI"); the first tensor that has a dimension fixes
// its size, every later one must agree. Failures are std::invalid_argument, which reaches Python as ValueError.
class Check {
 public:
  // Tensors must be on that device.
  explicit Check(std::string op, DeviceType device = DeviceType::CPU, int32_t index = -1)
      : op_(std::move(op)), device_(device), index_(index) {
    sizes_.fill(-1);
  }

  [[noreturn]] void fail(const std::string& message) const { throw std::invalid_argument(op_ + ": " + message); }

  void require(bool condition, const std::string& message) const {
    if (!condition) fail(message);
  }

  void tensor(const std::string& name, const Tensor& value, std::initializer_list<std::string_view> forms,
              std::initializer_list<ScalarType> dtypes) {
    const std::string_view* form = nullptr;
    for (const auto& candidate : forms)
      if (static_cast<int64_t>(candidate.size()) == value.dim()) form = &candidate;
    if (!form) fail(name + " must be " + joined(forms) + ", got " + shape_of(value));
    for (size_t axis = 0; axis < form->size(); ++axis) {
      int64_t& size = sizes_[(*form)[axis] - 'A'];
      const int64_t given = value.size(static_cast<int64_t>(axis));
      if (size < 0) size = given;
      if (given != size)
        fail(name + " must be " + joined(forms) + " with " + (*form)[axis] + "=" + std::to_string(size) + ", got " +
             shape_of(value));
    }
    device(name, value);
    dtype(name, value.scalar_type(), dtypes);
  }

  void device(const std::string& name, const Tensor& value) const {
    if (value.device().type() != device_ || value.get_device_index() != index_)
      fail(name + " must be on " + (device_ == DeviceType::CPU ? "cpu" : "cuda:" + std::to_string(index_)) +
           " as the other arguments, got another device");
  }

  void dtype(const std::string& name, ScalarType given, std::initializer_list<ScalarType> known) const {
    std::string names;
    for (const ScalarType type : known) {
      if (type == given) return;
      names += (names.empty() ? "" : " or ") + dtype_name(type);
    }
    fail(name + " must be " + names + ", got " + dtype_name(given));
  }

  // The position of a word among those that are known.
  int word(const std::string& name, const std::string& value, std::initializer_list<const char*> known) const {
    std::string names;
    int position = 0;
    for (const char* candidate : known) {
      if (value == candidate) return position;
      names += std::string(names.empty() ? "'" : ", '") + candidate + "'";
      ++position;
    }
    fail(name + " must be one of " + names + ", got '" + value + "'");
  }

  // Of consolidate.
  void thresholds(double on, double off) const {
    require(0 <= off && off <= on,
            "on and off must satisfy 0 <= off <= on, got on=" + std::to_string(on) + ", off=" + std::to_string(off));
  }

  int64_t size(char dimension) const { return sizes_[dimension - 'A']; }

  // A size that an argument says in another way than by its shape.
  void size(const std::string& name, int64_t value, char dimension) {
    int64_t& size = sizes_[dimension - 'A'];
    if (size < 0) size = value;
    if (value != size)
      fail(name + " must agree with " + dimension + "=" + std::to_string(size) + ", got " + std::to_string(value));
  }

 private:
  static std::string joined(std::initializer_list<std::string_view> forms) {
    std::string text;
    for (const auto form : forms) {
      text += text.empty() ? "[" : " or [";
      for (size_t axis = 0; axis < form.size(); ++axis) text += (axis ? ", " : "") + std::string(1, form[axis]);
      text += "]";
    }
    return text;
  }

  std::string op_;
  DeviceType device_;
  int32_t index_;
  std::array<int64_t, 26> sizes_;
};

}  // namespace artsy
