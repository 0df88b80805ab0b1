// Runs independent tasks on PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace artsy {

// task(worker, k) for every k < count. Each thread takes the next task that is left, so that a slow one (a neighbour on
// its core) is waited for once and not by its share of all tasks. Tasks must not depend on who runs them: that makes
// the result the same for any number of threads. worker < workers tells which scratch memory to use.
template <class Task>
void for_each_task(int64_t count, int64_t workers, const Task& task) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(workers, count), 1, [&](int64_t begin, int64_t) {
    for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(begin, k);
  });
}

// As many workers as there are threads, but one for less work than it takes to wake another.
inline int64_t workers_for(double operations) {
  constexpr double enough = 200'000;
  const double threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(threads, operations / enough)));
}

}  // namespace artsy
