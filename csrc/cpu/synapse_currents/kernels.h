// synapse_currents: one product for the units of all sub-networks. Compiled once per instruction set by each_isa.h.
// clang-format off: each needs those above it
#include "../simd.h"
#include "../routing/numbers.h"
#include "../routing/products.h"
#include "../routing/rows.h"
// clang-format on

// Rows [count, K] in one place, with room for pairs of numbers: behind an odd K there is a 0.
template <class Stored>
inline void copy_rows(const Stored* from, const uint8_t* functional, int64_t count, int64_t K, int64_t stride,
                      Stored* to) {
  for (int64_t i = 0; i < count; ++i, from += K, to += stride) {
    if (!functional) {
      std::copy_n(from, K, to);
    } else {
      using Bits = std::conditional_t<sizeof(Stored) == 2, uint16_t,
                                      std::conditional_t<sizeof(Stored) == 4, uint32_t, uint64_t>>;
      for (int64_t k = 0; k < K; ++k)  // all bits or none: without branches the compiler takes many at once
        to[k] = std::bit_cast<Stored>(static_cast<Bits>(std::bit_cast<Bits>(from[k]) & -Bits{functional[k]}));
      functional += K;
    }
    std::fill(to + K, to + stride, Stored{});
  }
}

// What one thread needs for a panel of units.
template <class Element, class Stored>
class Currents {
  using Number = Sum<Element>;
  static constexpr bool pairs = std::is_same_v<Element, BFloat16Pair>;
  static constexpr int64_t panel = kPanel<Element>, rows = 24;

 public:
  explicit Currents(const Problem<Stored>& problem)
      : p(problem),
        depth(pairs ? p.I + p.I % 2 : p.I),
        transmitting(p.functional || depth != p.I ? panel * depth : 0),
        even(depth != p.I ? rows * depth : 0),
        memory(packed_size<Number>(depth, panel)),
        bias(panel),
        converted(rows * kDepth),
        sums(rows * panel) {}

  // The units from `first` on, as many as a panel holds.
  void run(int64_t first, Stored* currents) {
    const int64_t width = std::min(panel, p.units - first);
    const Stored* from = p.weight + first * p.I;
    if (p.functional || depth != p.I) {
      copy_rows(from, p.functional ? p.functional + first * p.I : nullptr, width, p.I, depth, transmitting.get());
      from = transmitting.get();
    }
    const Right<Element> weight = packed_weights<Element>(from, width, depth, memory.get());
    copy_vectors(p.bias + first, width, bias.get());
    for (int64_t b = 0; b < p.B; b += rows) {
      const int64_t count = std::min(rows, p.B - b);
      const Stored* x = p.x + b * p.I;
      if (depth != p.I) {
        copy_rows(x, nullptr, count, p.I, depth, even.get());
        x = even.get();
      }
      multiply_rows<Element>(x, count, depth, weight, width, bias.get(), converted.get(), sums.get());
      for (int64_t i = 0; i < count; ++i)
        for_vectors<Number>(width, [&](int64_t j, auto n) {
          const auto sum = load(sums.get() + i * whole_vectors<Number>(width) + j);
          store_real(currents + (b + i) * p.units + first + j, sum, n);
        });
    }
  }

 private:
  const Problem<Stored>& p;
  int64_t depth;
  Scratch<Stored> transmitting, even;
  Scratch<Number> memory, bias, converted, sums;
};

template <class Element, class Stored>
void forward_in(const Problem<Stored>& problem, int64_t workers, Stored* currents) {
  std::vector<Currents<Element, Stored>> states;
  for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem);
  constexpr int64_t panel = kPanel<Element>;
  for_each_task((problem.units + panel - 1) / panel, workers,
                [&](int64_t worker, int64_t k) { states[worker].run(k * panel, currents); });
}

template <class Stored>
void forward(const Problem<Stored>& problem, int64_t workers, Stored* currents) {
#if ARTSY_BFLOAT16_DOT || ARTSY_BFLOAT16_TILES
  if constexpr (std::is_same_v<Stored, BFloat16>) return forward_in<BFloat16Pair>(problem, workers, currents);
#endif
  forward_in<Real<Stored>>(problem, workers, currents);
}
