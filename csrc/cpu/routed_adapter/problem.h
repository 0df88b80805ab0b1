// What both passes of routed_adapter read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace artsy {

enum class Activation { relu, gelu, gelu_tanh };

namespace routed_adapter {

// x: [used · N, D], rows of a sub-network together; base as x or null, x itself if residual; weights as in the op.
template <class Stored>
struct Problem {
  const Stored *x, *down, *down_bias, *up, *up_bias, *base;
  const int64_t* offsets;  // pairs of sub-network s are offsets[s] up to offsets[s+1]
  int64_t S, N, D, R;
  double scale;
  Activation activation;
  bool residual;

  int64_t begin(int64_t s) const { return offsets[s] * N; }
  int64_t rows() const { return begin(S); }
};

// Null where not asked for.
template <class Stored>
struct Gradients {
  Stored *x, *down, *down_bias, *up, *up_bias;
};

// Rows of one sub-network that are computed together: their hidden values stay in the first cache.
struct Tile {
  static constexpr int64_t most = 24;
  int64_t subnetwork, begin, count;
};

template <class Stored>
std::vector<Tile> tiles_of(const Problem<Stored>& problem) {
  std::vector<Tile> tiles;
  for (int64_t s = 0; s < problem.S; ++s)
    for (int64_t row = problem.begin(s); row < problem.begin(s + 1); row += Tile::most)
      tiles.push_back({s, row, std::min(Tile::most, problem.begin(s + 1) - row)});
  return tiles;
}

}  // namespace routed_adapter
}  // namespace artsy
