// Rules that look at the weights at every step: the steps are taken one after the other. No include guard: once per
// instruction set.
//
//     W ← keep · W + f₊(W) · Σ_b plus[b, j] · x[b, i] − f₋(W) · Σ_b y[b, j] · minus[b, i]
//
// with m and the amplitudes in plus and y. A square tile of weights stays in cache for a stretch of steps. Both sums
// are over events, if these are few: potentiation adds rows x[b, :] where neuron j spiked, depression adds columns y[b,
// :] where neuron i did. The latter come out transposed.

constexpr int kStepVectors = 4;
// Adding events instead of a dense product pays from this many more samples than events of a neuron: depression must be
// transposed then.
constexpr int64_t kTransposing = 10;
template <class Real>
constexpr int64_t kSide = kStepVectors * lanes<Real>;  // of a tile

// Turns a square of bits: bit k of word i becomes bit i of word k. Hacker's Delight, 7-3.
inline void transpose_bits(uint64_t* word) {
  uint64_t mask = 0xffffffff;
  for (int half = 32; half; half /= 2, mask ^= mask << half)
    for (int i = 0; i < 64; i = ((i | half) + 1) & ~half) {
      const uint64_t swapped = (word[i] >> half ^ word[i | half]) & mask;
      word[i] ^= swapped << half;
      word[i | half] ^= swapped;
    }
}

// The events of one step on one side of a tile: which samples each of its kSide neurons adds, with which factor.
template <class Real>
struct Events {
  std::vector<uint64_t> samples;  // [words, 64] bits of each neuron
  int64_t words, count;
  Real factor;  // of all events; 0 where they differ
  // The neurons, in groups, by their number of events: loops of the same length follow each other, which the processor
  // predicts.
  uint8_t order[kSide<Real>];

  // From dense factors [B, kSide].
  void collect(const Real* factors, int64_t B, int group) {
    words = (B + 63) / 64;
    samples.assign(static_cast<size_t>(words * 64), 0);
    factor = 0;
    Vector<Real> others{};
    for (int64_t b = 0; b < B; ++b)
      for (int v = 0; v < kStepVectors; ++v) {
        const Vector<Real> values = load(factors + b * kSide<Real> + v * lanes<Real>);
        const uint64_t bits = nonzero_lanes<Real>(values);
        samples[b] |= bits << (v * lanes<Real>);
        if (factor == 0 && bits) factor = values[std::countr_zero(bits)];
        others = values != Real(0) && values != factor ? values : others;
      }
    if (nonzero_lanes<Real>(others)) factor = 0;
    uint32_t counts[64] = {};
    for (int64_t w = 0; w < words; ++w) {
      transpose_bits(samples.data() + w * 64);
      for (int k = 0; k < 64; ++k) counts[k] += static_cast<uint32_t>(std::popcount(samples[w * 64 + k]));
    }
    count = std::accumulate(counts, counts + 64, int64_t{0});
    for (int k = 0; k < kSide<Real>; k += group) sort(counts, k, k + group);
  }

  // By counting; what is beyond the last counter need not be in order.
  void sort(const uint32_t* counts, int begin, int end) {
    static constexpr uint32_t last = 31;
    uint8_t place[last + 2] = {};
    const auto key = [counts](int k) { return std::min<uint32_t>(counts[k], last); };
    for (int k = begin; k < end; ++k) ++place[key(k) + 1];
    for (uint32_t n = 0; n < last; ++n) place[n + 1] += place[n];
    for (int k = begin; k < end; ++k) order[begin + place[key(k)]++] = static_cast<uint8_t>(k);
  }

  // Σ factor · row of neuron k over its samples, the first V vectors. Both are [B, kSide].
  template <int V>
  void sum(int64_t k, const Real* __restrict factors, const Real* __restrict rows, Vector<Real> (&sum)[V]) const {
    const auto each = [&](auto add) {
      for (int64_t w = 0; w < words; ++w)
        for (uint64_t bits = samples[w * 64 + k]; bits; bits &= bits - 1)
          add((w * 64 + std::countr_zero(bits)) * kSide<Real>);
    };
    if (factor != 0) {
      each([&](int64_t at) {
        for (int v = 0; v < V; ++v) sum[v] += load(rows + at + v * lanes<Real>);
      });
      for (int v = 0; v < V; ++v) sum[v] *= factor;
    } else {
      each([&](int64_t at) {
        for (int v = 0; v < V; ++v) sum[v] += factors[at + k] * load(rows + at + v * lanes<Real>);
      });
    }
  }
};

// Turns a block of lanes × lanes by riffling its vectors log2(lanes) times.
template <class Real>
inline void transpose(Vector<Real> (&v)[lanes<Real>]) {
  Vector<Real> w[lanes<Real>];
  for (int stage = 1; stage < lanes<Real>; stage *= 2) {
    for (int k = 0; k < lanes<Real> / 2; ++k) riffle<Real>(v[k], v[k + lanes<Real> / 2], w[2 * k], w[2 * k + 1]);
    for (int k = 0; k < lanes<Real>; ++k) v[k] = w[k];
  }
}

// The neurons of one side of a tile for a stretch of steps: what a step reads of their traces, and with which factor
// their spikes count.
template <class Real>
class StepSide {
 public:
  // Neurons in an array [.., sample, neuron], and their rule. The numbers of the post-synaptic side come times m.
  struct Neurons {
    Spikes spikes;
    int64_t per_step, per_sample, first, count;
    const Real *given, *given_slow;  // or null
    Real *trace, *trace_slow;        // results, or null
    double decay, gain, amplitude, target, slow_decay, slow_amplitude;
    const Real* m;  // [step, B], or null
  };

  StepSide(const Problem<Real>& p, int64_t steps)
      : p_(p),
        read_(steps * p.B * kSide<Real>),
        factor_(steps * p.B * kSide<Real>),
        events_(static_cast<size_t>(steps)) {}

  const Real* read(int64_t step) const { return read_.get() + step * p_.B * kSide<Real>; }      // [B, kSide]
  const Real* factor(int64_t step) const { return factor_.get() + step * p_.B * kSide<Real>; }  // [B, kSide]
  const Events<Real>& events(int64_t step) const { return events_[step]; }                      // of the factors

  // Steps [begin, end). The traces [2, B, kSide] are kept from one stretch to the next.
  void follow(const Neurons& neurons, int64_t begin, int64_t end, Real* traces) {
    if (neurons.spikes.bytes)
      follow<uint8_t>(neurons, begin, end, traces);
    else
      follow<Real>(neurons, begin, end, traces);
  }

  // Returns how many there are.
  int64_t collect_events(int64_t steps, int group) {
    int64_t count = 0;
    for (int64_t step = 0; step < steps; ++step) {
      events_[step].collect(factor(step), p_.B, group);
      count += events_[step].count;
    }
    return count;
  }

 private:
  using Vec = Vector<Real>;

  template <class Spike>
  void follow(const Neurons& neurons, int64_t begin, int64_t end, Real* traces) {
    const Rule& rule = p_.rule;
    const bool slow = rule.triplet.has_value(), nearest = rule.nearest, exclusive = rule.exclusive;
    const Real decay = Real(neurons.decay), slow_decay = Real(neurons.slow_decay), target = Real(neurons.target);
    const Real amplitude = Real(neurons.amplitude), slow_amplitude = Real(neurons.slow_amplitude);
    const Vec gain = broadcast(Real(neurons.gain));
    Real* const slow_traces = traces + p_.B * kSide<Real>;
    const auto each = [&](auto visit) {  // visit(sample, lane in the tile, neurons there)
      for (int64_t b = 0; b < p_.B; ++b)
        for (int64_t lane = 0; lane < kSide<Real>; lane += lanes<Real>)
          visit(b, lane, std::clamp<int64_t>(neurons.count - lane, 0, lanes<Real>));
    };
    if (begin == 0)
      each([&](int64_t b, int64_t lane, int64_t here) {
        const int64_t at = b * neurons.per_sample + neurons.first + lane, to = b * kSide<Real> + lane;
        store(traces + to, neurons.given && here ? load(neurons.given + at, here) : Vec{});
        if (slow) store(slow_traces + to, neurons.given_slow && here ? load(neurons.given_slow + at, here) : Vec{});
      });
    for (int64_t t = begin; t < end; ++t)
      each([&](int64_t b, int64_t lane, int64_t here) {
        const Spike* from = static_cast<const Spike*>(neurons.spikes.data) + t * neurons.per_step +
                            b * neurons.per_sample + neurons.first + lane;
        __builtin_prefetch(from + 16 * neurons.per_sample + lanes<Real> - 1);  // too far away to be foreseen by itself
        const Vec spike = here == lanes<Real> ? load_spikes<Real>(from) : here ? load_spikes<Real>(from, here) : Vec{};
        const int64_t in_tile = b * kSide<Real> + lane, to = (t - begin) * p_.B * kSide<Real> + in_tile;
        const Real m = neurons.m ? neurons.m[(t - begin) * p_.B + b] : Real(1);
        const Vec decayed = decay * load(traces + in_tile);
        const Vec trace = nearest ? (spike != Real(0) ? gain : decayed) : decayed + gain * spike;
        store(traces + in_tile, trace);
        Vec factor = broadcast(amplitude);
        if (slow) {
          const Vec decayed_slow = slow_decay * load(slow_traces + in_tile);
          factor += slow_amplitude * decayed_slow;
          store(slow_traces + in_tile,
                nearest ? (spike != Real(0) ? gain : decayed_slow) : decayed_slow + gain * spike);
        }
        store(read_.get() + to, m * ((exclusive ? decayed : trace) - target));
        store(factor_.get() + to, m * factor * spike);
      });
    if (end == p_.T && neurons.trace)
      each([&](int64_t b, int64_t lane, int64_t here) {
        const int64_t at = b * neurons.per_sample + neurons.first + lane, from = b * kSide<Real> + lane;
        if (here) store(neurons.trace + at, load(traces + from), here);
        if (here && slow) store(neurons.trace_slow + at, load(slow_traces + from), here);
      });
  }

  const Problem<Real>& p_;
  Scratch<Real> read_, factor_;
  std::vector<Events<Real>> events_;
};

template <class Real>
class Stepwise {
 public:
  explicit Stepwise(const Problem<Real>& p)
      : p_(p),
        tiles_((p.I + kSide<Real> - 1) / kSide<Real>),
        steps_(steps_at_a_time(p)),
        group_(subnetworks_at_a_time(p)),
        keep_(Real(1 - p.rule.weight_decay)),
        each_step_(p.rule.clamp == Clamp::step) {}

  void run() {
    const double operations = double(p_.T * p_.B * p_.J + p_.J) * double(p_.I) / lanes<Real>;
    const int64_t workers = workers_for(operations * double(p_.S)), groups = (p_.S + group_ - 1) / group_;
    const auto run_group = [&](int64_t group, Memory& memory) {
      run_subnetworks(group * group_, std::min((group + 1) * group_, p_.S), memory);
    };
    if (groups >= 2 * workers) {
      std::vector<std::unique_ptr<Memory>> memory(static_cast<size_t>(workers));
      for_each_task(groups, workers, [&](int64_t worker, int64_t group) {
        if (!memory[worker]) memory[worker] = std::make_unique<Memory>(p_, group_, steps_, tiles_, 1);
        run_group(group, *memory[worker]);
      });
    } else {
      Memory memory(p_, group_, steps_, tiles_, workers);
      for (int64_t group = 0; group < groups; ++group) run_group(group, memory);
    }
  }

 private:
  using Vec = Vector<Real>;

  using Side = StepSide<Real>;

  struct TileMemory {
    TileMemory(const Problem<Real>& p, int64_t steps)
        : pre(p, steps),
          weights(kSide<Real> * kSide<Real>),
          before(kSide<Real> * kSide<Real>),
          potentiation(kSide<Real> * kSide<Real>),
          depression(lanes<Real> * kSide<Real>) {}
    Side pre;
    bool sparse = false;
    Scratch<Real> weights, before, potentiation, depression;
  };

  struct Memory {
    Memory(const Problem<Real>& p, int64_t group, int64_t steps, int64_t tiles, int64_t workers)
        : blocks((p.J + kSide<Real> - 1) / kSide<Real>),
          traces((tiles + group * blocks) * 2 * p.B * kSide<Real>),
          m(group * steps * p.B),
          tile(static_cast<size_t>(workers)) {
      for (int64_t k = 0; k < group * blocks; ++k) post.push_back(std::make_unique<Side>(p, steps));
    }
    int64_t blocks;
    std::vector<std::unique_ptr<Side>> post;        // [sub-network of the group, block]
    Scratch<Real> traces, m;                        // of the tiles, then of post; [sub-network of the group, step, B]
    std::vector<std::unique_ptr<TileMemory>> tile;  // of each worker
  };

  // A tile's pre-synaptic side and all of the post-synaptic one stay in the second-level cache.
  static int64_t steps_at_a_time(const Problem<Real>& p) {
    constexpr int64_t cache = 768 << 10;
    return std::clamp<int64_t>(cache / step_bytes(p), 1, std::max<int64_t>(1, p.T));
  }

  static int64_t step_bytes(const Problem<Real>& p) {
    return std::max<int64_t>(1, p.B * std::max(p.J, kSide<Real>) * int64_t(sizeof(Real)));
  }

  // Sub-networks that see the same pre-synaptic side share the work of preparing it.
  static int64_t subnetworks_at_a_time(const Problem<Real>& p) {
    constexpr int64_t cache = 2 << 20;
    if (p.own_pre || !p.uniform_amplitudes()) return 1;
    return std::clamp<int64_t>(cache / (step_bytes(p) * steps_at_a_time(p)), 1, p.S);
  }

  // Sub-networks [from, to), a group.
  void run_subnetworks(int64_t from, int64_t to, Memory& memory) const {
    const auto workers = static_cast<int64_t>(memory.tile.size());
    const int64_t trace = 2 * p_.B * kSide<Real>, blocks = memory.blocks;
    const auto m = [&](int64_t s) { return memory.m.get() + (s - from) * steps_ * p_.B; };
    const bool adds_events = !p_.rule.eligibility && p_.B > kTransposing;
    for (int64_t begin = 0; begin < std::max<int64_t>(1, p_.T); begin += steps_) {
      const int64_t end = std::min(begin + steps_, p_.T);
      for (int64_t s = from; s < to; ++s)
        for (int64_t t = begin; t < end; ++t)
          for (int64_t b = 0; b < p_.B; ++b)
            m(s)[(t - begin) * p_.B + b] = p_.masked(b, s) ? 0 : p_.share() * p_.modulation_at(t, b, s);
      for_each_task((to - from) * blocks, workers, [&](int64_t, int64_t k) {
        const int64_t s = from + k / blocks;
        Side& post = *memory.post[k];
        post.follow(post_neurons(s, k % blocks, m(s)), begin, end, memory.traces.get() + (tiles_ + k) * trace);
        if (adds_events) post.collect_events(end - begin, kSide<Real>);
      });
      for_each_task(tiles_, workers, [&](int64_t worker, int64_t k) {
        auto& mine = memory.tile[worker];
        if (!mine) mine = std::make_unique<TileMemory>(p_, steps_);
        mine->pre.follow(pre_neurons(from, k), begin, end, memory.traces.get() + k * trace);
        const int64_t few = (p_.B - kTransposing) * (end - begin) * kSide<Real>;
        mine->sparse = adds_events && mine->pre.collect_events(end - begin, lanes<Real>) < few;
        for (int64_t s = from; s < to; ++s)
          for (int64_t block = 0; block < blocks; ++block)
            take_tile({s, block, k * kSide<Real>, begin, end}, *memory.post[(s - from) * blocks + block], m(s), *mine);
      });
    }
  }

  typename Side::Neurons pre_neurons(int64_t s, int64_t tile) const {
    const Rule& rule = p_.rule;
    const Triplet slow = rule.triplet.value_or(Triplet{});
    const int64_t first = (p_.own_pre ? s * p_.I : 0) + tile * kSide<Real>;
    const bool keep = p_.own_pre || s == 0;  // shared traces are the same for every sub-network
    return {p_.pre,
            p_.B * p_.pre_width(),
            p_.pre_width(),
            first,
            p_.I - tile * kSide<Real>,
            p_.given.pre,
            p_.given.pre_slow,
            keep ? p_.traces.pre : nullptr,
            p_.traces.pre_slow,
            rule.decay_pre,
            rule.gain_pre,
            double(p_.a_minus[s]),
            rule.x_target,
            slow.decay_pre_slow,
            slow.a_minus,
            nullptr};
  }

  typename Side::Neurons post_neurons(int64_t s, int64_t block, const Real* m) const {
    const Rule& rule = p_.rule;
    const Triplet slow = rule.triplet.value_or(Triplet{});
    return {p_.post,
            p_.B * p_.S * p_.J,
            p_.S * p_.J,
            s * p_.J + block * kSide<Real>,
            p_.J - block * kSide<Real>,
            p_.given.post,
            p_.given.post_slow,
            p_.traces.post,
            p_.traces.post_slow,
            rule.decay_post,
            rule.gain_post,
            double(p_.a_plus[s]),
            0,
            slow.decay_post_slow,
            slow.a_plus,
            rule.eligibility ? nullptr : m};
  }

  struct Tile {
    int64_t s, block, column, begin, end;
  };

  int64_t rows_of(const Tile& tile) const { return std::min(kSide<Real>, p_.J - tile.block * kSide<Real>); }
  int64_t columns_of(const Tile& tile) const { return std::min(kSide<Real>, p_.I - tile.column); }
  int64_t row_at(const Tile& tile, int64_t r) const {
    return (tile.s * p_.J + tile.block * kSide<Real> + r) * p_.I + tile.column;
  }

  void take_tile(const Tile& tile, const Side& post, const Real* m, TileMemory& memory) const {
    const int64_t rows = rows_of(tile), columns = columns_of(tile);
    const bool compares = p_.rule.dependence != Dependence::none && !p_.rule.evaluate_each_step;
    for (int64_t r = 0; r < rows; ++r) {
      const Real* from = (tile.begin == 0 ? p_.weight : p_.result) + row_at(tile, r);
      std::copy_n(from, columns, memory.weights.get() + r * kSide<Real>);
      if (compares) std::copy_n(p_.weight + row_at(tile, r), columns, memory.before.get() + r * kSide<Real>);
    }
    const bool weighted = p_.rule.dependence != Dependence::none;
    if (p_.rule.eligibility)
      take_eligible(tile, post, m, memory);
    else if (memory.sparse)
      weighted ? take_sparse<true>(tile, post, memory) : take_sparse<false>(tile, post, memory);
    else if (columns <= lanes<Real>)
      weighted ? take_dense<true, 1>(tile, post, memory) : take_dense<false, 1>(tile, post, memory);
    else
      weighted ? take_dense<true, kStepVectors>(tile, post, memory)
               : take_dense<false, kStepVectors>(tile, post, memory);
    for (int64_t r = 0; r < rows; ++r) {
      Real* row = memory.weights.get() + r * kSide<Real>;
      if (tile.end == p_.T && p_.rule.clamp == Clamp::end)
        for (int v = 0; v < kStepVectors; ++v)
          store(row + v * lanes<Real>, clamped<Real>(load(row + v * lanes<Real>), p_.rule));
      std::copy_n(row, columns, p_.result + row_at(tile, r));
      if (tile.end == p_.T) consolidate(p_, row_at(tile, r), columns);
    }
  }

  struct Bounds {
    Vec low, high;
  };
  Bounds bounds() const {
    const Real infinity = std::numeric_limits<Real>::infinity();
    return {broadcast(each_step_ ? Real(p_.rule.w_min) : -infinity),
            broadcast(each_step_ ? Real(p_.rule.w_max) : infinity)};
  }

  template <bool Weighted>
  Vec step(Vec w, const Real* before, Vec ltp, Vec ltd, const Bounds& bounds) const {
    if constexpr (Weighted) {
      w = keep_ * w;
      const auto f = dependences<Real>(p_.rule.evaluate_each_step ? w : load(before), p_.rule);
      w += f.plus * ltp - f.minus * ltd;
    } else {
      w = keep_ * w + (ltp - ltd);
    }
    return at_most(at_least(w, bounds.low), bounds.high);
  }

  // VI and VJ: vectors of columns and of rows that the tile has.
  template <bool Weighted, int VI, int VJ>
  void take_sparse(const Tile& tile, const Side& post, TileMemory& memory) const {
    constexpr int L = lanes<Real>;
    const Bounds bounds = this->bounds();
    Real *const weights = memory.weights.get(), *const before = memory.before.get();
    Real *const potentiation = memory.potentiation.get(), *const depression = memory.depression.get();
    for (int64_t t = 0; t < tile.end - tile.begin; ++t) {
      const Events<Real>& pre_events = memory.pre.events(t);
      const Events<Real>& post_events = post.events(t);
      const Real *x = memory.pre.read(t), *minus = memory.pre.factor(t), *y = post.read(t), *plus = post.factor(t);
      for (const int64_t j : post_events.order) {
        if (j >= VJ * L) continue;
        Vec ltp[VI] = {};
        post_events.template sum<VI>(j, plus, x, ltp);
        for (int v = 0; v < VI; ++v) store(potentiation + j * kSide<Real> + v * L, ltp[v]);
      }
      for (int u = 0; u < VI; ++u) {
        for (int64_t k = u * L; k < (u + 1) * L; ++k) {
          const int64_t i = pre_events.order[k];
          Vec ltd[VJ] = {};
          pre_events.template sum<VJ>(i, minus, y, ltd);
          for (int v = 0; v < VJ; ++v) store(depression + (i - u * L) * kSide<Real> + v * L, ltd[v]);
        }
        for (int v = 0; v < VJ; ++v) {
          Vec ltd[L];
          for (int k = 0; k < L; ++k) ltd[k] = load(depression + k * kSide<Real> + v * L);
          transpose<Real>(ltd);
          for (int k = 0; k < L; ++k) {
            const int64_t at = (v * L + k) * kSide<Real> + u * L;
            store(weights + at,
                  step<Weighted>(load(weights + at), before + at, load(potentiation + at), ltd[k], bounds));
          }
        }
      }
    }
  }

  template <bool Weighted>
  void take_sparse(const Tile& tile, const Side& post, TileMemory& memory) const {
    const bool narrow = columns_of(tile) <= lanes<Real>, low = rows_of(tile) <= lanes<Real>;
    if (narrow)
      low ? take_sparse<Weighted, 1, 1>(tile, post, memory)
          : take_sparse<Weighted, 1, kStepVectors>(tile, post, memory);
    else
      low ? take_sparse<Weighted, kStepVectors, 1>(tile, post, memory)
          : take_sparse<Weighted, kStepVectors, kStepVectors>(tile, post, memory);
  }

  // V vectors of columns. Rows in pairs: as many independent chains as it takes to hide the latency of a step.
  template <bool Weighted, int V>
  void take_dense(const Tile& tile, const Side& post, TileMemory& memory) const {
    constexpr int pair = 2;
    static_assert(kSide<Real> % pair == 0,
                  "an odd row would have no partner; rows of padding are computed for nothing");
    const Bounds bounds = this->bounds();
    const bool single = !Weighted && p_.B == 1;
    for (int64_t r = 0; r < rows_of(tile); r += pair) {
      Real* row = memory.weights.get() + r * kSide<Real>;
      Vec w[pair][V];
      for (int k = 0; k < pair; ++k)
        for (int v = 0; v < V; ++v) w[k][v] = load(row + k * kSide<Real> + v * lanes<Real>);
      for (int64_t t = 0; t < tile.end - tile.begin; ++t) {
        const Real *x = memory.pre.read(t), *minus = memory.pre.factor(t);
        const Real *plus = post.factor(t) + r, *y = post.read(t) + r;
        if (single) {  // nothing to sum: straight into the weights
          for (int k = 0; k < pair; ++k) {
            if (keep_ != 1)
              for (int v = 0; v < V; ++v) w[k][v] *= keep_;
            if (plus[k] != 0)
              for (int v = 0; v < V; ++v) w[k][v] += plus[k] * load(x + v * lanes<Real>);
            for (int v = 0; v < V; ++v) {
              w[k][v] -= y[k] * load(minus + v * lanes<Real>);
              w[k][v] = at_most(at_least(w[k][v], bounds.low), bounds.high);
            }
          }
          continue;
        }
        Vec ltp[pair][V] = {}, ltd[pair][V] = {};
        for (int64_t b = 0; b < p_.B; ++b) {
          for (int v = 0; v < V; ++v) {
            const Vec column = load(minus + b * kSide<Real> + v * lanes<Real>);
            for (int k = 0; k < pair; ++k) ltd[k][v] += y[b * kSide<Real> + k] * column;
          }
          for (int k = 0; k < pair; ++k)
            if (const Real factor = plus[b * kSide<Real> + k]; factor != 0)
              for (int v = 0; v < V; ++v) ltp[k][v] += factor * load(x + b * kSide<Real> + v * lanes<Real>);
        }
        for (int k = 0; k < pair; ++k)
          for (int v = 0; v < V; ++v) {
            const Real* before = memory.before.get() + (r + k) * kSide<Real> + v * lanes<Real>;
            w[k][v] = step<Weighted>(w[k][v], before, ltp[k][v], ltd[k][v], bounds);
          }
      }
      for (int k = 0; k < pair; ++k)
        for (int v = 0; v < V; ++v) store(row + k * kSide<Real> + v * lanes<Real>, w[k][v]);
    }
  }

  void take_eligible(const Tile& tile, const Side& post, const Real* modulation, TileMemory& memory) const {
    const int64_t sample = p_.S * p_.J * p_.I, columns = columns_of(tile);
    const Real decay = Real(*p_.rule.eligibility);
    const Bounds bounds = this->bounds();
    for (int64_t r = 0; r < rows_of(tile); ++r) {
      Real* eligibility = p_.traces.eligibility + row_at(tile, r);
      for (int64_t b = 0; b < p_.B && tile.begin == 0; ++b)
        if (p_.given.eligibility)
          std::copy_n(p_.given.eligibility + b * sample + row_at(tile, r), columns, eligibility + b * sample);
        else
          std::fill_n(eligibility + b * sample, columns, Real(0));
      for (int v = 0; v * lanes<Real> < columns; ++v) {
        const int64_t in_tile = r * kSide<Real> + v * lanes<Real>,
                      here = std::min<int64_t>(lanes<Real>, columns - v * lanes<Real>);
        Vec w = load(memory.weights.get() + in_tile);
        for (int64_t t = 0; t < tile.end - tile.begin; ++t) {
          const Real *x = memory.pre.read(t) + v * lanes<Real>, *minus = memory.pre.factor(t) + v * lanes<Real>;
          const Real *plus = post.factor(t) + r, *y = post.read(t) + r, *m = modulation + t * p_.B;
          w = keep_ * w;
          Dependences<Real> f{broadcast(Real(1)), broadcast(Real(1))};
          if (p_.rule.dependence != Dependence::none)
            f = dependences<Real>(p_.rule.evaluate_each_step ? w : load(memory.before.get() + in_tile), p_.rule);
          Vec paid{};
          for (int64_t b = 0; b < p_.B; ++b) {
            Real* trace = eligibility + b * sample + v * lanes<Real>;
            const Vec old = here == lanes<Real> ? load(trace) : load(trace, here);
            const Vec now = decay * old + (f.plus * (plus[b * kSide<Real>] * load(x + b * kSide<Real>)) -
                                           f.minus * (y[b * kSide<Real>] * load(minus + b * kSide<Real>)));
            if (here == lanes<Real>)
              store(trace, now);
            else
              store(trace, now, here);
            paid += m[b] * (p_.rule.delayed ? old : now);
          }
          w = at_most(at_least(w + paid, bounds.low), bounds.high);
        }
        store(memory.weights.get() + in_tile, w);
      }
    }
  }

  const Problem<Real>& p_;
  const int64_t tiles_, steps_, group_;
  const Real keep_;
  const bool each_step_;
};
