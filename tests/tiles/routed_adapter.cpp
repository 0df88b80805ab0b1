// routed_adapter's forward pass for tiles, on tiles in software, beside a plain loop over the same rounded numbers.
// Memory is exactly as large as it must be, so that an address sanitizer sees each access beyond it.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "amx.h"
#include "cpu/routed_adapter/problem.h"
#include "cpu/routing/ranges.h"
#include "cpu/routing/types.h"
#include "cpu/scratch.h"

namespace artsy {
using namespace artsy::routed_adapter;
}

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define ARTSY_VECTOR_BYTES 64
#define ARTSY_BFLOAT16_TILES 1
namespace artsy::tiles {
#include "cpu/routed_adapter/kernels.h"
}
#pragma GCC pop_options

namespace {

using namespace artsy;

std::mt19937 generator(0);

std::vector<BFloat16> numbers(int64_t count, double deviation) {
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  std::vector<BFloat16> values(static_cast<size_t>(count));
  for (auto& value : values) value = to_bfloat16(normal(generator));
  return values;
}

// Hidden values and outputs of one row, in double; the activated hidden values are rounded as the kernel rounds them.
struct Row {
  std::vector<double> hidden, y;
};

Row exact(const Problem<BFloat16>& p, int64_t s, int64_t row) {
  Row result{std::vector<double>(p.R), std::vector<double>(p.D)};
  std::vector<double> active(p.R);
  for (int64_t r = 0; r < p.R; ++r) {
    double sum = to_float(p.down_bias[s * p.R + r]);
    for (int64_t d = 0; d < p.D; ++d)
      sum += double{to_float(p.x[row * p.D + d])} * to_float(p.down[(s * p.R + r) * p.D + d]);
    result.hidden[r] = sum;
    active[r] = to_float(to_bfloat16(static_cast<float>(std::max(sum, 0.0))));
  }
  for (int64_t d = 0; d < p.D; ++d) {
    double sum = to_float(p.up_bias[s * p.D + d]);
    for (int64_t r = 0; r < p.R; ++r) sum += active[r] * to_float(p.up[(s * p.D + d) * p.R + r]);
    result.y[d] = (p.base ? to_float(p.base[row * p.D + d]) : 0) + p.scale * sum;
  }
  return result;
}

// The largest error of the hidden values, and of the outputs relative to their rounding to bfloat16.
std::pair<double, double> errors(std::vector<int64_t> pairs, int64_t N, int64_t D, int64_t R, bool residual) {
  const int64_t S = static_cast<int64_t>(pairs.size());
  std::vector<int64_t> offsets{0};
  for (const int64_t count : pairs) offsets.push_back(offsets.back() + count);
  const int64_t rows = offsets.back() * N;
  const auto x = numbers(rows * D, 1), down = numbers(S * R * D, 1 / std::sqrt(D)), down_bias = numbers(S * R, 0.3),
             up = numbers(S * D * R, 1 / std::sqrt(R)), up_bias = numbers(S * D, 0.3);
  const Problem<BFloat16> problem{x.data(),
                                  down.data(),
                                  down_bias.data(),
                                  up.data(),
                                  up_bias.data(),
                                  residual ? x.data() : nullptr,
                                  offsets.data(),
                                  S,
                                  N,
                                  D,
                                  R,
                                  0.5,
                                  Activation::relu,
                                  residual};
  std::vector<BFloat16> y(static_cast<size_t>(rows * D), to_bfloat16(NAN));
  std::vector<float> saved(static_cast<size_t>(rows * R), NAN);
  tiles::forward(problem, tiles_of(problem), 1, y.data(), saved.data());

  double of_hidden = 0, of_y = 0;
  for (int64_t s = 0; s < S; ++s)
    for (int64_t row = problem.begin(s); row < problem.begin(s + 1); ++row) {
      const Row expected = exact(problem, s, row);
      for (int64_t r = 0; r < R; ++r) {
        const double error = std::abs(saved[row * R + r] - expected.hidden[r]);
        of_hidden = std::max(of_hidden, std::isnan(error) ? HUGE_VAL : error);
      }
      for (int64_t d = 0; d < D; ++d) {
        const double error =
            std::abs(to_float(y[row * D + d]) - expected.y[d]) / std::max(1.0, std::abs(expected.y[d]));
        of_y = std::max(of_y, std::isnan(error) ? HUGE_VAL : error);
      }
    }
  return {of_hidden, of_y};
}

}  // namespace

// One line a problem: what it is, and its two errors.
int main() {
  const std::vector<std::vector<int64_t>> plans{{}, {0}, {1}, {3, 0, 2}, {0, 25, 1}, {7, 16, 17, 31}};
  for (const auto& pairs : plans)
    for (const int64_t N : {1, 5})
      for (const auto& [D, R] : {std::pair{2, 2}, {32, 8}, {34, 48}, {64, 32}, {96, 64}, {160, 66}, {768, 64}, {46, 6}})
        for (const bool residual : {false, true}) {
          if (D == 768 && N > 1) continue;
          const auto [of_hidden, of_y] = errors(pairs, N, D, R, residual);
          std::printf("S=%zu N=%d D=%d R=%d residual=%d: %g %g\n", pairs.size(), static_cast<int>(N), D, R, residual,
                      of_hidden, of_y);
        }
}
