// What prototype_logits reads.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../routing/types.h"

namespace artsy::prototype_logits {

template <class Stored>
struct Problem {
  const Stored *features, *prototypes, *weight;   // [P, D], [S, C, D], [S, C]
  const Stored *base_features, *base_prototypes;  // [B, D], [C, D]; null where not given
  const int64_t *offsets, *order, *sample_offsets;
  int64_t S, B, C, D;
  bool maximum;
};

// Rows that meet the same prototypes: the pairs of a sub-network with the classes on which it has a say, or all samples
// with E0's prototypes.
template <class Stored>
struct Group {
  const Stored *rows, *prototypes;
  int64_t first_row, count;  // among the pairs, or behind them
  std::vector<int64_t> classes;
  int64_t cosines;  // where the cosines of its rows begin, [count, classes]
};

// The sub-networks' groups in their order, then E0's.
template <class Stored>
std::vector<Group<Stored>> groups_of(const Problem<Stored>& p) {
  std::vector<Group<Stored>> groups;
  int64_t cosines = 0;
  const auto add = [&](Group<Stored> group) {
    cosines += group.count * static_cast<int64_t>(group.classes.size());
    groups.push_back(std::move(group));
  };
  for (int64_t s = 0; s < p.S; ++s) {
    const int64_t first = p.offsets[s];
    Group<Stored> group{
        p.features + first * p.D, p.prototypes + s * p.C * p.D, first, p.offsets[s + 1] - first, {}, cosines};
    for (int64_t c = 0; c < p.C && group.count; ++c)
      if (to_real(p.weight[s * p.C + c]) > 0) group.classes.push_back(c);
    add(std::move(group));
  }
  Group<Stored> base{p.base_features, p.base_prototypes, p.offsets[p.S], p.base_features ? p.B : 0, {}, cosines};
  for (int64_t c = 0; c < p.C && base.count; ++c) base.classes.push_back(c);
  add(std::move(base));
  return groups;
}

}  // namespace artsy::prototype_logits
