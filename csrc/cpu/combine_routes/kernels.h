// combine_routes, forward and backward. Compiled once per instruction set by each_isa.h, without fused multiply-add:
// the sums are those of a plain loop to the bit.
// clang-format off: each needs those above it
#include "../simd.h"
#include "../routing/numbers.h"
// clang-format on

// Vectors whose sums stay in registers while the pairs of a sample pass.
constexpr int kSums = 4;

// Columns from `at` on of sample b; of the last vector n lanes.
template <int vectors, class Stored, class Count>
[[gnu::always_inline]] inline void combine(const Problem<Stored>& p, int64_t b, int64_t at, Count n,
                                           const Output<Stored>& out) {
  using Number = Real<Stored>;
  constexpr int64_t width = lanes<Number>;
  Vector<Number> sum[vectors];
  for (int j = 0; j < vectors; ++j)
    sum[j] = p.base ? load_real(p.base + b * p.L + at + j * width, n) : Vector<Number>{};
  for (int64_t k = p.sample_offsets[b]; k < p.sample_offsets[b + 1]; ++k) {
    const int64_t pair = p.order[k];
    const Stored* row = p.y + pair * p.L + at;
    if (p.weight) {
      const Number weight = to_real(p.weight[pair]);
      for (int j = 0; j < vectors; ++j) sum[j] += load_real(row + j * width, n) * weight;
    } else {
      for (int j = 0; j < vectors; ++j) sum[j] += load_real(row + j * width, n);
    }
  }
  for (int j = 0; j < vectors; ++j) out.write(b * p.L + at + j * width, sum[j], n);
}

template <class Stored>
void forward(const Problem<Stored>& p, int64_t workers, Stored* result) {
  using Number = Real<Stored>;
  constexpr int64_t width = lanes<Number>;
  const Output<Stored> out(result, p.B, p.L);
  for_each_range(p.B, workers, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t at = 0;
      for (; at + kSums * width <= p.L; at += kSums * width)
        combine<kSums>(p, b, at, std::integral_constant<int64_t, width>(), out);
      for_vectors<Number>(p.L - at, [&](int64_t j, auto n) { combine<1>(p, b, at + j, n, out); });
    }
  });
}

// For the pairs in use; grad [B, L]. Results are null where not asked for.
template <class Stored>
void backward(const Problem<Stored>& p, int64_t pairs, int64_t workers, const Stored* grad, Stored* y, Stored* weight) {
  using Number = Real<Stored>;
  const Output<Stored> out(y, pairs, p.L);
  for_each_range(pairs, workers, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const Stored* g = grad + p.sample[pair] * p.L;
      if (y) {
        const Number factor = p.weight ? to_real(p.weight[pair]) : Number(1);
        for_vectors<Number>(p.L,
                            [&](int64_t j, auto n) { out.write(pair * p.L + j, load_real(g + j, n) * factor, n); });
      }
      if (weight) {
        Vector<Number> sum{};
        for_vectors<Number>(
            p.L, [&](int64_t j, auto n) { sum += load_real(g + j, n) * load_real(p.y + pair * p.L + j, n); });
        Number total = 0;
        for (int i = 0; i < lanes<Number>; ++i) total += sum[i];
        weight[pair] = from_real<Stored>(total);
      }
    }
  });
}
