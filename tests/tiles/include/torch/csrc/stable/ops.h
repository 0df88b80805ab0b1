// What csrc/cpu/parallel.h takes from PyTorch, on one thread: the program needs no PyTorch.
#pragma once

#include <cstdint>

namespace torch::stable {

template <class Run>
void parallel_for(int64_t begin, int64_t end, int64_t, const Run& run) {
  if (begin < end) run(begin, end);
}

inline int64_t get_num_threads() { return 1; }

}  // namespace torch::stable
