// Runs ranges of tasks on PyTorch's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../parallel.h"

namespace artsy {

// run(worker, begin, end) for ranges that make up 0 … count: neighbours share what a worker has prepared for the first
// of them. A few ranges for each worker, so that a slow one holds nobody up.
template <class Run>
void for_each_range(int64_t count, int64_t workers, const Run& run) {
  const int64_t ranges = workers == 1 ? 1 : std::min(count, 8 * workers);
  for_each_task(ranges, workers,
                [&](int64_t worker, int64_t k) { run(worker, k * count / ranges, (k + 1) * count / ranges); });
}

}  // namespace artsy
