// Memory that a kernel works in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace artsy {

// `size` numbers at the beginning of a cache line, not initialised.
template <class Number>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t size)
      : memory_(static_cast<Number*>(::operator new(sizeof(Number) * std::max<int64_t>(size, 1), line))) {}

  Number* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t line{64};
  struct Free {
    void operator()(Number* memory) const { ::operator delete(memory, line); }
  };
  std::unique_ptr<Number, Free> memory_;
};

}  // namespace artsy
