// prototype_logits: the cosines of every pair to its sub-network's prototypes, then the answers of the samples.
// Compiled once per instruction set by each_isa.h.
// clang-format off: each needs those above it
#include "../simd.h"
#include "../routing/numbers.h"
#include "../routing/products.h"
#include "../routing/rows.h"
// clang-format on

// As torch.nn.functional.normalize: what is shorter counts as that long.
template <class Stored>
inline Real<Stored> length(const Stored* vector, int64_t D) {
  using Number = Real<Stored>;
  Vector<Number> sum{};
  for_vectors<Number>(D, [&](int64_t i, auto n) {
    const auto v = load_real(vector + i, n);
    sum += v * v;
  });
  Number total = 0;
  for (int i = 0; i < lanes<Number>; ++i) total += sum[i];
  return std::max(std::sqrt(total), Number(1e-12));
}

// What one thread needs for cosines.
template <class Stored>
class Cosines {
  using Number = Real<Stored>;
  static constexpr int64_t panel = kPanel<Number>, rows = 24;

 public:
  explicit Cosines(int64_t D)
      : D(D),
        directions(panel * D),
        memory(packed_size<Number>(D, panel)),
        start(panel),
        converted(rows * kDepth),
        sums(rows * panel) {
    std::fill_n(start.get(), panel, Number(0));
  }

  // The group's rows with its classes from `first` on, as many as a panel holds.
  void run(const Group<Stored>& group, int64_t first, const Number* lengths, Number* cosines) {
    const int64_t classes = static_cast<int64_t>(group.classes.size()), width = std::min(panel, classes - first);
    for (int64_t c = 0; c < width; ++c) {
      const Stored* prototype = group.prototypes + group.classes[first + c] * D;
      const Number size = length(prototype, D);
      for_vectors<Number>(D, [&](int64_t i, auto n) {
        store_real(directions.get() + c * D + i, load_real(prototype + i, n) / size, n);
      });
    }
    const Right<Number> right = packed_transpose<Number>(directions.get(), width, D, memory.get());
    for (int64_t row = 0; row < group.count; row += rows) {
      const int64_t count = std::min(rows, group.count - row);
      multiply_rows<Number>(group.rows + row * D, count, D, right, width, start.get(), converted.get(), sums.get());
      for (int64_t i = 0; i < count; ++i) {
        const Number size = lengths[group.first_row + row + i];
        Number* to = cosines + group.cosines + (row + i) * classes + first;
        const Number* from = sums.get() + i * whole_vectors<Number>(width);
        for (int64_t c = 0; c < width; ++c) to[c] = from[c] / size;
      }
    }
  }

 private:
  int64_t D;
  Scratch<Number> directions, memory, start, converted, sums;
};

// The logits of a sample. NaN wins, as in torch.maximum.
template <class Stored>
inline void answer(const Problem<Stored>& p, const std::vector<Group<Stored>>& groups, const int64_t* subnetwork,
                   const Real<Stored>* cosines, int64_t b, Real<Stored>* sums, uint8_t* answered, Stored* logits) {
  using Number = Real<Stored>;
  std::fill_n(answered, p.C, uint8_t{0});
  for (int64_t k = p.sample_offsets[b]; k < p.sample_offsets[b + 1]; ++k) {
    const int64_t pair = p.order[k], s = subnetwork[pair];
    const Group<Stored>& group = groups[s];
    const int64_t classes = static_cast<int64_t>(group.classes.size());
    const Number* own = cosines + group.cosines + (pair - group.first_row) * classes;
    for (int64_t i = 0; i < classes; ++i) {
      const int64_t c = group.classes[i];
      const Number score = to_real(p.weight[s * p.C + c]) * own[i];
      if (!answered[c])
        sums[c] = score;
      else if (!p.maximum)
        sums[c] += score;
      else if (score > sums[c] || score != score)
        sums[c] = score;
      answered[c] = 1;
    }
  }
  const Number* base = p.base_features ? cosines + groups.back().cosines + b * p.C : nullptr;
  for (int64_t c = 0; c < p.C; ++c)
    logits[b * p.C + c] = from_real<Stored>(answered[c] ? sums[c] + (base ? base[c] : Number(0))
                                                        : -std::numeric_limits<Number>::infinity());
}

template <class Stored>
void forward(const Problem<Stored>& p, const std::vector<Group<Stored>>& groups, int64_t workers, Stored* logits) {
  using Number = Real<Stored>;
  struct Task {
    const Group<Stored>* group;
    int64_t first;
  };
  std::vector<Task> tasks;
  for (const auto& group : groups)
    for (int64_t first = 0; first < static_cast<int64_t>(group.classes.size()); first += kPanel<Number>)
      tasks.push_back({&group, first});

  const auto& last = groups.back();
  const Scratch<Number> lengths(last.first_row + last.count);
  const Scratch<int64_t> subnetwork(last.first_row);
  for (size_t g = 0; g < groups.size(); ++g)
    for (int64_t i = 0; i < groups[g].count; ++i) {
      lengths.get()[groups[g].first_row + i] = length(groups[g].rows + i * p.D, p.D);
      if (&groups[g] != &last) subnetwork.get()[groups[g].first_row + i] = static_cast<int64_t>(g);
    }

  const Scratch<Number> cosines(last.cosines + last.count * static_cast<int64_t>(last.classes.size()));
  std::vector<Cosines<Stored>> states;
  for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(p.D);
  for_each_task(static_cast<int64_t>(tasks.size()), workers, [&](int64_t worker, int64_t k) {
    states[worker].run(*tasks[k].group, tasks[k].first, lengths.get(), cosines.get());
  });

  const Scratch<Number> sums(workers * p.C);
  const Scratch<uint8_t> answered(workers * p.C);
  for_each_range(p.B, workers, [&](int64_t worker, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      answer(p, groups, subnetwork.get(), cosines.get(), b, sums.get() + worker * p.C, answered.get() + worker * p.C,
             logits);
  });
}
