// synapse_scores: the hidden units of one gate after the other, summed up as soon as they are known. Compiled once per
// instruction set by each_isa.h.
// clang-format off: each needs those above it
#include "../simd.h"
#include "../routing/numbers.h"
#include "../routing/products.h"
#include "../routing/rows.h"
// clang-format on

// What one thread needs.
template <class Element, class Stored>
class Gates {
  using Number = Sum<Element>;
  static constexpr int64_t rows = 24;

 public:
  explicit Gates(const Problem<Stored>& problem)
      : p(problem),
        hidden_size(whole_vectors<Number>(p.R)),
        memory(packed_size<Number>(p.D, p.R)),
        down_bias(hidden_size),
        up(hidden_size),
        converted(rows * kDepth),
        hidden(rows * hidden_size) {}

  // Gate s for all samples.
  void run(int64_t s, Stored* scores) {
    const Right<Element> down = packed_weights<Element>(p.down + s * p.R * p.D, p.R, p.D, memory.get());
    copy_vectors(p.down_bias + s * p.R, p.R, down_bias.get());
    copy_vectors(p.up + s * p.R, p.R, up.get());
    for (int64_t b = 0; b < p.B; b += rows) {
      const int64_t count = std::min(rows, p.B - b);
      multiply_rows<Element>(p.features + b * p.D, count, p.D, down, p.R, down_bias.get(), converted.get(),
                             hidden.get());
      for (int64_t i = 0; i < count; ++i) {
        Vector<Number> sum{};
        for_vectors<Number>(p.R, [&](int64_t j, auto n) {
          const auto v = load_real(hidden.get() + i * hidden_size + j, n), zero = Vector<Number>{};
          sum += (v < zero ? zero : v) * load(up.get() + j);
        });
        Number total = to_real(p.up_bias[s]);
        for (int lane = 0; lane < lanes<Number>; ++lane) total += sum[lane];
        scores[(b + i) * p.S + s] = from_real<Stored>(total);
      }
    }
  }

 private:
  const Problem<Stored>& p;
  int64_t hidden_size;
  Scratch<Number> memory, down_bias, up, converted, hidden;
};

template <class Element, class Stored>
void forward_in(const Problem<Stored>& problem, int64_t workers, Stored* scores) {
  std::vector<Gates<Element, Stored>> states;
  for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem);
  for_each_task(problem.S, workers, [&](int64_t worker, int64_t s) { states[worker].run(s, scores); });
}

template <class Stored>
void forward(const Problem<Stored>& problem, int64_t workers, Stored* scores) {
#if ARTSY_BFLOAT16_DOT || ARTSY_BFLOAT16_TILES
  if constexpr (std::is_same_v<Stored, BFloat16>)
    if (problem.D % 2 == 0) return forward_in<BFloat16Pair>(problem, workers, scores);
#endif
  forward_in<Real<Stored>>(problem, workers, scores);
}
