// Gradients of rules that look at the weights at every step. No include guard: once per instruction set.
//
// A tile of weights is taken through all steps, kept at every `steps_`-th; then stretch by stretch from the last to the
// first: forwards once more, keeping the weights of every step, and back with the gradient that arrives at them. In
//
//     w = keep · w + Σ_b m · (f₊ · plus[b, j] · x[b, i] − f₋ · y[b, j] · minus[b, i])        with eligibility: … · e[b]
//
// every sample has the matrix of gradients of its pairs in common with the others, or its own with eligibility. It is
// summed over rows and columns into the gradients of what the sides read and count (side.h).
//
// Tiles in the same rows or columns add to the same gradients. They are taken in diagonals: those of one diagonal have
// none in common, and the order of the diagonals does not depend on the number of threads.

// Few for a large batch: what the sides read and count is kept for every sample of a stretch.
template <class Real>
int64_t steps_at_a_time(const Problem<Real>& p) {
  const auto root = static_cast<int64_t>(std::ceil(std::sqrt(double(p.T))));
  return std::min(p.T, std::max(root, std::clamp<int64_t>(2048 / std::max<int64_t>(1, p.B), 1, 32)));
}

template <class Real>
class StepwiseBackward {
 public:
  StepwiseBackward(const Problem<Real>& p, const Gradients<Real>& g)
      : p_(p),
        g_(g),
        pre_(pre_side(p, g)),
        post_(post_side(p, g)),
        rows_(p.rule.eligibility ? lanes<Real> : kSide<Real>),
        blocks_((p.J + rows_ - 1) / rows_),
        columns_((p.I + kSide<Real> - 1) / kSide<Real>),
        steps_(steps_at_a_time(p)),
        stretches_((p.T + steps_ - 1) / steps_),
        keep_(Real(1 - p.rule.weight_decay)),
        weighted_(p.rule.dependence != Dependence::none),
        each_step_(p.rule.evaluate_each_step),
        clamps_(p.rule.clamp == Clamp::step) {}

  // T, S, J and I are not 0.
  void run() {
    for (const Side<Real>* side : {&pre_, &post_}) {
      if (side->spike_gradient) std::fill_n(side->spike_gradient, p_.T * side->per_step, Real(0));
      for (Real* gradient : {side->gradient, side->gradient_slow})
        if (gradient) std::fill_n(gradient, p_.B * side->per_sample, Real(0));
    }
    const int64_t tiles = p_.S * blocks_ * columns_;
    std::vector<double> a_plus(static_cast<size_t>(tiles), 0), a_minus(a_plus);
    const int64_t steps = p_.T * p_.B * p_.S;
    if (g_.modulation) {
      of_factor_ = unwritten<Real>(blocks_ * steps);
      std::fill_n(of_factor_.get(), blocks_ * steps, Real(0));
    }
    // The pre-synaptic side of a tile: shared by the rows of all sub-networks, or only by those of its own.
    const int64_t grids = p_.own_pre ? p_.S : 1, rows = p_.S / grids * blocks_, diagonals = std::max(rows, columns_);
    const int64_t workers = workers_for(double(p_.T * p_.B * p_.J) * double(p_.S * p_.I) / lanes<Real> * 4);
    std::vector<std::unique_ptr<Memory>> memory(static_cast<size_t>(workers));
    for (int64_t diagonal = 0; diagonal < diagonals; ++diagonal)
      for_each_task(grids * rows, workers, [&](int64_t worker, int64_t k) {
        const int64_t column = (k % rows + diagonal) % diagonals;
        if (column >= columns_) return;
        if (!memory[worker]) memory[worker] = std::make_unique<Memory>(*this);
        const int64_t at = k * columns_ + column;
        take_tile({k / blocks_, k % blocks_, column}, *memory[worker], a_plus[at], a_minus[at]);
      });
    for (int64_t s = 0; s < p_.S; ++s) {
      double plus = 0, minus = 0;
      for (int64_t k = s * blocks_ * columns_; k < (s + 1) * blocks_ * columns_; ++k)
        plus += a_plus[k], minus += a_minus[k];
      if (g_.a_plus) g_.a_plus[s] = Real(plus);
      if (g_.a_minus) g_.a_minus[s] = Real(minus);
    }
    if (g_.modulation) add_up_modulation();
  }

 private:
  using Vec = Vector<Real>;
  static constexpr int V = kStepVectors, L = lanes<Real>;
  static constexpr int64_t kGroup = L * kSide<Real>;  // weights of as many rows as a vector has lanes

  // The memory of one worker.
  struct Memory {
    explicit Memory(const StepwiseBackward& of)
        : pre(of.pre_, of.steps_, of.p_.B),
          post(of.post_, of.steps_, of.p_.B),
          traces(of.stretches_ * (pre.traces_size() + post.traces_size())),
          weights(of.stretches_ * of.tile_size()),
          first(of.tile_size()),
          arriving(of.tile_size()),
          direct(of.tile_size()),
          unclamped(of.steps_ * kGroup),
          sensitivity(of.weighted_ && !of.eligible() ? of.steps_ * kGroup : 0),
          step(6 * kGroup),
          eligibility(of.eligible() * of.stretches_ * of.tile_size()),
          arriving_eligibility(of.eligible() * of.tile_size()),
          eligibility_of_step(of.eligible() * (of.g_.modulation ? of.steps_ + 1 : 1) * kGroup),
          m(of.steps_ * of.p_.B) {}
    SideRows<Real> pre, post;
    Scratch<Real> traces;                   // before each stretch
    Scratch<Real> weights;                  // before each stretch [rows, kSide]
    Scratch<Real> first, arriving, direct;  // [rows, kSide]; direct: past the steps, of the weights that f reads
    Scratch<Real> unclamped;                // new weights of each step [L, kSide]
    Scratch<Real> sensitivity;              // of the change at each step, through f, without eligibility
    Scratch<Real> step;                     // of one step: the gradient, f₊, f₋, f₊', f₋' and its gradient
    Scratch<Real> eligibility, arriving_eligibility, eligibility_of_step;  // [.., B, rows or L, kSide]
    Scratch<Real> m;                                                       // [step, B]
  };

  struct Tile {
    int64_t s, block, column;
  };

  int64_t tile_size() const { return rows_ * kSide<Real>; }
  int64_t eligible() const { return p_.rule.eligibility ? p_.B : 0; }
  int64_t count_of(const Tile& tile) const { return std::min(rows_, p_.J - tile.block * rows_); }
  Neurons pre_neurons(const Tile& tile) const {
    const int64_t column = tile.column * kSide<Real>;
    return {(p_.own_pre ? tile.s * p_.I : 0) + column, std::min(kSide<Real>, p_.I - column), 0, p_.B};
  }
  Neurons post_neurons(const Tile& tile) const { return {tile.s * p_.J + tile.block * rows_, count_of(tile), 0, p_.B}; }

  // A tile of an array [S, J, I], with zeros around it where it is cut; null stands for 0.
  void load_tile(const Tile& tile, const Real* from, Real* to) const {
    std::fill_n(to, tile_size(), Real(0));
    const Neurons columns = pre_neurons(tile);
    for (int64_t r = 0; from && r < count_of(tile); ++r)
      std::copy_n(from + row_at(tile, r), columns.count, to + r * kSide<Real>);
  }
  void store_tile(const Tile& tile, const Real* from, Real* to) const {
    const Neurons columns = pre_neurons(tile);
    for (int64_t r = 0; r < count_of(tile); ++r)
      std::copy_n(from + r * kSide<Real>, columns.count, to + row_at(tile, r));
  }
  int64_t row_at(const Tile& tile, int64_t r) const {
    return (tile.s * p_.J + tile.block * rows_ + r) * p_.I + tile.column * kSide<Real>;
  }

  void take_tile(const Tile& tile, Memory& memory, double& a_plus, double& a_minus) const {
    const Neurons pre = pre_neurons(tile), post = post_neurons(tile);
    const Real of_plus = p_.a_plus[tile.s], of_minus = p_.a_minus[tile.s];
    const int64_t all = p_.S * p_.J * p_.I, size = tile_size(), traces = memory.pre.traces_size();
    const auto each_sample = [&](auto visit) {
      for (int64_t b = 0; b < eligible(); ++b) visit(b);
    };
    const auto follow = [&](int64_t begin, int64_t end) {
      memory.pre.follow(pre_, pre, of_minus, begin, end);
      memory.post.follow(post_, post, of_plus, begin, end);
      for (int64_t t = begin; t < end; ++t)
        for (int64_t b = 0; b < p_.B; ++b)
          memory.m.get()[(t - begin) * p_.B + b] =
              p_.masked(b, tile.s) ? 0 : p_.share() * p_.modulation_at(t, b, tile.s);
    };

    load_tile(tile, p_.weight, memory.first.get());
    std::copy_n(memory.first.get(), size, memory.weights.get());
    each_sample([&](int64_t b) {
      load_tile(tile, p_.given.eligibility ? p_.given.eligibility + b * all : nullptr,
                memory.eligibility.get() + b * size);
    });
    memory.pre.start(pre_, pre), memory.post.start(post_, post);
    for (int64_t k = 0; k < stretches_; ++k) {
      Real* kept = memory.traces.get() + 2 * k * traces;
      std::copy_n(memory.pre.traces(), traces, kept);
      std::copy_n(memory.post.traces(), traces, kept + traces);
      if (k + 1 == stretches_) break;
      follow(k * steps_, (k + 1) * steps_);
      for (int64_t r = 0; r < count_of(tile); r += L) forwards(r, k, steps_, memory, false);
    }

    load_tile(tile, g_.result, memory.arriving.get());
    std::fill_n(memory.direct.get(), size, Real(0));
    each_sample([&](int64_t b) {
      load_tile(tile, g_.traces.eligibility ? g_.traces.eligibility + b * all : nullptr,
                memory.arriving_eligibility.get() + b * size);
    });
    // What arrives at the traces is counted once, by the first tile of a row or column.
    const bool first_row = tile.block == 0 && (p_.own_pre || tile.s == 0), first_column = tile.column == 0;
    memory.pre.start_back(first_row ? pre_ : Side<Real>{}, pre);
    memory.post.start_back(first_column ? post_ : Side<Real>{}, post);
    for (int64_t k = stretches_ - 1; k >= 0; --k) {
      const int64_t begin = k * steps_, end = std::min(p_.T, begin + steps_), steps = end - begin;
      const Real* kept = memory.traces.get() + 2 * k * traces;
      std::copy_n(kept, traces, memory.pre.traces());
      std::copy_n(kept + traces, traces, memory.post.traces());
      follow(begin, end);
      memory.pre.clear_gradients(steps), memory.post.clear_gradients(steps);
      for (int64_t r = 0; r < count_of(tile); r += L) {
        forwards(r, k, steps, memory, true);
        for (int64_t t = steps - 1; t >= 0; --t) {
          if (p_.rule.eligibility)
            backwards<true, true>(tile, r, k, t, memory);
          else if (weighted_)
            backwards<true, false>(tile, r, k, t, memory);
          else
            backwards<false, false>(tile, r, k, t, memory);
        }
      }
      a_minus += memory.pre.walk_back(pre_, pre, of_minus, begin, end, true);
      a_plus += memory.post.walk_back(post_, post, of_plus, begin, end, true);
    }
    memory.pre.finish_back(pre_, pre, true), memory.post.finish_back(post_, post, true);
    if (g_.weight) {
      for (int64_t at = 0; at < size; ++at) memory.arriving.get()[at] += memory.direct.get()[at];
      store_tile(tile, memory.arriving.get(), g_.weight);
    }
    if (g_.given.eligibility)
      each_sample([&](int64_t b) {
        store_tile(tile, memory.arriving_eligibility.get() + b * size, g_.given.eligibility + b * all);
      });
  }

  Vec bounded(Vec w) const { return clamps_ ? clamped<Real>(w, p_.rule) : w; }

  // Rows [r, r + L) of the tile through the steps of stretch k. The results begin the next stretch; or the new weights
  // of every step are kept, and the eligibility before and after where the modulation wants it.
  void forwards(int64_t r, int64_t k, int64_t steps, const Memory& memory, bool keeps) const {
    const int64_t size = tile_size(), group = r * kSide<Real>;
    const Real* w = memory.weights.get() + k * size + group;
    Real* after = memory.weights.get() + (k + 1) * size + group;
    Real* e = memory.eligibility_of_step.get();
    for (int64_t b = 0; b < eligible(); ++b)
      std::copy_n(memory.eligibility.get() + (k * p_.B + b) * size + group, kGroup, e + b * kGroup);
    for (int64_t t = 0; t < steps; ++t) {
      const Real* before = t == 0 ? w : keeps ? memory.unclamped.get() + (t - 1) * kGroup : after;
      Real* to = keeps ? memory.unclamped.get() + t * kGroup : after;
      Real* next = keeps && g_.modulation ? e + eligible() * kGroup : e;
      const Real* m = memory.m.get() + t * p_.B;
      constexpr int rows = 2;  // share what is loaded of the pre-synaptic side
      for (int64_t j = 0; j < L; j += rows) {
        Vec ltp[rows][V] = {}, ltd[rows][V] = {};
        for (int64_t b = 0; b < p_.B && !p_.rule.eligibility; ++b) {
          const Real *const x = memory.pre.read(t, b), *const minus = memory.pre.factor(t, b);
          const Real *const plus = memory.post.factor(t, b) + r + j, *const y = memory.post.read(t, b) + r + j;
          for (int v = 0; v < V; ++v) {
            const Vec xs = load(x + v * L), minuses = load(minus + v * L);
            for (int k = 0; k < rows; ++k) ltp[k][v] += m[b] * plus[k] * xs, ltd[k][v] += m[b] * y[k] * minuses;
          }
        }
        for (int k = 0; k < rows; ++k)
          for (int v = 0; v < V; ++v) {
            const int64_t at = (j + k) * kSide<Real> + v * L;
            const Vec old = load(before + at), decayed = keep_ * (t == 0 ? old : bounded(old));
            const auto f = dependence(decayed, memory.first.get() + group + at);
            Vec change = f.plus * ltp[k][v] - f.minus * ltd[k][v];
            if (keeps && weighted_ && !p_.rule.eligibility) {
              const auto slope = slopes_of(decayed, memory.first.get() + group + at);
              store(memory.sensitivity.get() + t * kGroup + at, slope.plus * ltp[k][v] - slope.minus * ltd[k][v]);
            }
            for (int64_t b = 0; b < eligible(); ++b) {
              const Vec trace = load(e + b * kGroup + at);
              const Vec now = Real(*p_.rule.eligibility) * trace +
                              (f.plus * (memory.post.factor(t, b)[r + j + k] * load(memory.pre.read(t, b) + v * L)) -
                               f.minus * (memory.post.read(t, b)[r + j + k] * load(memory.pre.factor(t, b) + v * L)));
              store(next + b * kGroup + at, now);
              change += m[b] * (p_.rule.delayed ? trace : now);
            }
            store(to + at, decayed + change);
          }
      }
      e = next;
    }
    if (keeps) return;
    for (int64_t at = 0; at < kGroup; at += L) store(after + at, bounded(load(after + at)));
    for (int64_t b = 0; b < eligible(); ++b)
      std::copy_n(e + b * kGroup, kGroup, memory.eligibility.get() + ((k + 1) * p_.B + b) * size + group);
  }

  // f of the decayed weights of a step, or of the first ones.
  Dependences<Real> dependence(Vec decayed, const Real* first) const {
    if (!weighted_) return {broadcast(Real(1)), broadcast(Real(1))};
    return dependences<Real>(each_step_ ? decayed : load(first), p_.rule);
  }

  Dependences<Real> slopes_of(Vec decayed, const Real* first) const {
    return slopes<Real>(each_step_ ? decayed : load(first), p_.rule);
  }

  // The same rows back through step t of stretch k.
  template <bool Weighted, bool Eligible>
  void backwards(const Tile& tile, int64_t r, int64_t k, int64_t t, const Memory& memory) const {
    const int64_t size = tile_size(), group = r * kSide<Real>;
    const Real* const now = memory.unclamped.get() + t * kGroup;
    const Real* const before = t == 0 ? memory.weights.get() + k * size + group : now - kGroup;
    Real *const gradient = memory.step.get(), *const plus = gradient + kGroup, *const minus = plus + kGroup;
    Real *const plus_slope = minus + kGroup, *const minus_slope = plus_slope + kGroup;
    Real* const of_read_weights = minus_slope + kGroup;
    Real *const arriving = memory.arriving.get() + group, *const direct = memory.direct.get() + group;
    const bool ends = k * steps_ + t + 1 == p_.T && p_.rule.clamp == Clamp::end;
    for (int64_t at = 0; at < kGroup; at += L) {
      const Vec found = load(arriving + at);
      store(gradient + at, clamps_ || ends ? passed<Real>(found, load(now + at), p_.rule) : found);
      if constexpr (!Weighted) continue;
      const Vec old = load(before + at), decayed = keep_ * (t == 0 ? old : bounded(old));
      const auto f = dependence(decayed, memory.first.get() + group + at);
      store(plus + at, f.plus), store(minus + at, f.minus);
      if constexpr (Eligible) {
        const auto slope = slopes_of(decayed, memory.first.get() + group + at);
        store(plus_slope + at, slope.plus), store(minus_slope + at, slope.minus);
        store(of_read_weights + at, Vec{});
      } else {
        store(of_read_weights + at, load(gradient + at) * load(memory.sensitivity.get() + t * kGroup + at));
      }
    }

    for (int64_t b = 0; b < p_.B; ++b) {
      const Real *const x = memory.pre.read(t, b), *const ltd = memory.pre.factor(t, b);
      const Real *const ltp = memory.post.factor(t, b) + r, *const y = memory.post.read(t, b) + r;
      const Real m = memory.m.get()[t * p_.B + b], scale = Eligible ? Real(1) : m;
      Real* const own = memory.arriving_eligibility.get() + b * size + group;
      Vec of_x[V] = {}, of_ltd[V] = {}, of_ltp[L], of_y[L];
      for (int64_t j = 0; j < L; ++j) {
        const Real potentiates = scale * ltp[j], depresses = scale * y[j];
        Vec with_x{}, with_ltd{};
        for (int v = 0; v < V; ++v) {
          const int64_t at = j * kSide<Real> + v * L;
          Vec pair = load(gradient + at);
          if constexpr (Eligible) {
            const Vec paid = m * pair, trace = load(own + at);
            pair = p_.rule.delayed ? trace : trace + paid;
            store(own + at, Real(*p_.rule.eligibility) * pair + (p_.rule.delayed ? paid : Vec{}));
          }
          const Vec xs = load(x + v * L), ltds = load(ltd + v * L);
          Vec potentiated = pair, depressed = pair;
          if constexpr (Weighted) {
            potentiated *= load(plus + at), depressed *= load(minus + at);
            if constexpr (Eligible) {
              const Vec slope = load(plus_slope + at) * (ltp[j] * xs) - load(minus_slope + at) * (y[j] * ltds);
              store(of_read_weights + at, load(of_read_weights + at) + pair * slope);
            }
          }
          of_x[v] += potentiates * potentiated;
          of_ltd[v] -= depresses * depressed;
          with_x += potentiated * xs;
          with_ltd -= depressed * ltds;
        }
        of_ltp[j] = with_x, of_y[j] = with_ltd;
      }
      for (int v = 0; v < V; ++v) {
        add(memory.pre.read_gradient(t, b) + v * L, of_x[v]);
        add(memory.pre.factor_gradient(t, b) + v * L, of_ltd[v]);
      }
      transpose<Real>(of_ltp), transpose<Real>(of_y);
      for (int j = 1; j < L; ++j) of_ltp[0] += of_ltp[j], of_y[0] += of_y[j];
      store(memory.post.factor_gradient(t, b) + r, scale * of_ltp[0]);
      store(memory.post.read_gradient(t, b) + r, scale * of_y[0]);
      if (!g_.modulation) continue;
      Vec of_m{};
      if constexpr (Eligible) {
        const Real* e = memory.eligibility_of_step.get() + ((t + !p_.rule.delayed) * p_.B + b) * kGroup;
        for (int64_t at = 0; at < kGroup; at += L) of_m += load(gradient + at) * load(e + at);
      } else {
        of_m = of_ltp[0] * load(ltp) + of_y[0] * load(y);
      }
      of_factor_[((tile.block * p_.T + k * steps_ + t) * p_.B + b) * p_.S + tile.s] += sum_of_lanes<Real>(of_m);
    }

    for (int64_t at = 0; at < kGroup; at += L) {
      Vec found = load(gradient + at);
      if constexpr (Weighted) {
        const Vec of_read = load(of_read_weights + at);
        if (each_step_)
          found += of_read;
        else
          add(direct + at, of_read);
      }
      store(arriving + at, keep_ * found);
    }
  }

  static void add(Real* to, Vec v) { store(to, load(to) + v); }

  void add_up_modulation() const {
    std::fill_n(g_.modulation, p_.T * p_.B * (p_.own_modulation ? p_.S : 1), Real(0));
    for (int64_t k = 0; k < p_.T * p_.B; ++k)
      for (int64_t s = 0; s < p_.S; ++s) {
        if (p_.masked(k % p_.B, s)) continue;
        double sum = 0;
        for (int64_t block = 0; block < blocks_; ++block) sum += of_factor_[(block * p_.T * p_.B + k) * p_.S + s];
        g_.modulation[p_.own_modulation ? k * p_.S + s : k] += Real(p_.share() * sum);
      }
  }

  const Problem<Real>& p_;
  const Gradients<Real>& g_;
  const Side<Real> pre_, post_;
  const int64_t rows_, blocks_, columns_, steps_, stretches_;
  const Real keep_;
  const bool weighted_, each_step_, clamps_;
  std::unique_ptr<Real[]> of_factor_;  // [block, T, B, S]: gradients of m
};
