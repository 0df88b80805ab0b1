// Tensors of any size, for what kernels do at their far ends: only the pages that are touched take memory.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace far {

// Zeros.
template <class T>
class Tensor {
 public:
  explicit Tensor(int64_t size) : bytes_(size_t(size) * sizeof(T)) {
    void* const memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no address space for " + std::to_string(bytes_) + " bytes");
    data = static_cast<T*>(memory);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() { munmap(data, bytes_); }

  T* data;

 private:
  size_t bytes_;
};

}  // namespace far
