// What both passes of combine_routes read.
#pragma once

#include <cstdint>

namespace artsy::combine_routes {

// Rows of L numbers: y [P, L], base [B, L] or null; weight [P] or null.
template <class Stored>
struct Problem {
  const Stored *y, *weight, *base;
  const int64_t *sample, *order, *sample_offsets;
  int64_t B, L;
};

}  // namespace artsy::combine_routes
