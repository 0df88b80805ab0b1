// Gradients of rules that do not read the weights between steps. No include guard: once per instruction set.
//
// With G the gradient that arrives at the new weights, a step's read and factor on one side receive
//
//     c · Σ_n G · factor of the other side's neuron n        and        c · Σ_n G · its read
//
// where c is what the pairs of the step count in the new weights. Reading is a decayed sum over time and commutes with
// the sum over n. So both come from sums over the other side's spikes alone: a row of G where n spiked. Then the
// gradients of reads and factors are walked back in time (side.h). The same holds for what arrives at the eligibility,
// which every sample has of its own.

template <class Real>
class SummedBackward {
 public:
  SummedBackward(const Problem<Real>& p, const Gradients<Real>& g)
      : p_(p),
        g_(g),
        halves_(p.rule.dependence != Dependence::none),
        pre_(pre_side(p, g)),
        post_(post_side(p, g)),
        weight_factors_(p),
        joint_(!p.own_pre && !(p.mask && g.traces.eligibility) &&
               (p.S < 2 || (!p.own_modulation && p.uniform_amplitudes()))) {
    if (p.rule.eligibility) eligibility_factors_.emplace(p);
  }

  void run() {
    clamp_at_the_end();
    if (g_.weight) differentiate_weights();
    if (g_.given.eligibility) differentiate_eligibility();
    if (post_.asked() || g_.a_plus || g_.a_minus || g_.modulation) take_side(true);
    if (pre_.asked()) take_side(false);
  }

 private:
  using Vec = Vector<Real>;
  static constexpr int V = kStepVectors;

  int64_t size() const { return p_.S * p_.J * p_.I; }

  // g_.result becomes what arrives before the clamp: the weights there are computed once more.
  void clamp_at_the_end() {
    if (p_.rule.clamp != Clamp::end || !p_.rule.bounded() || !g_.result) return;
    unclamped_ = unwritten<Real>(size());
    const auto pre = unwritten<Real>(2 * p_.B * p_.pre_width()), post = unwritten<Real>(2 * p_.B * p_.S * p_.J);
    const auto eligibility = unwritten<Real>(p_.rule.eligibility ? p_.B * size() : 0);
    Problem<Real> p = p_;
    p.rule.clamp = Clamp::never;
    p.result = unclamped_.get();
    p.traces = traces_in(pre.get(), post.get());
    p.traces.eligibility = eligibility.get();
    Summed<Real>(p).run();
    for (int64_t k = 0; k < size(); k += lanes<Real>) {
      const int64_t here = std::min<int64_t>(lanes<Real>, size() - k);
      const Vec w = load(unclamped_.get() + k, here);
      store(unclamped_.get() + k, passed<Real>(load(g_.result + k, here), w, p_.rule), here);
    }
    g_.result = unclamped_.get();
  }

  // As the forward kernel finds them: holding what they start with.
  TracePointers<Real> traces_in(Real* pre, Real* post) const {
    const int64_t I = p_.B * p_.pre_width(), J = p_.B * p_.S * p_.J;
    const auto begin = [](const Real* given, int64_t count, Real* to) {
      given ? std::copy_n(given, count, to) : std::fill_n(to, count, Real(0));
    };
    begin(p_.given.pre, I, pre), begin(p_.given.pre_slow, I, pre + I);
    begin(p_.given.post, J, post), begin(p_.given.post_slow, J, post + J);
    return {pre, post, pre + I, post + J, nullptr};
  }

  void differentiate_weights() const {
    const bool reads = p_.rule.dependence == Dependence::proportional || p_.rule.dependence == Dependence::soft;
    if (!reads || (!g_.result && !g_.traces.eligibility)) {
      for (int64_t k = 0; k < size(); ++k) g_.weight[k] = g_.result ? weight_factors_.kept() * g_.result[k] : Real(0);
      return;
    }
    const auto pre = unwritten<Real>(2 * p_.B * p_.pre_width()), post = unwritten<Real>(2 * p_.B * p_.S * p_.J);
    std::vector<Real> nothing(g_.result ? 0 : size(), 0);
    Problem<Real> p = p_;
    p.rule.clamp = Clamp::never;
    p.given.eligibility = nullptr;
    p.arriving = g_.result ? g_.result : nothing.data();
    p.arriving_eligibility = g_.traces.eligibility;
    p.result = g_.weight;
    p.traces = traces_in(pre.get(), post.get());
    Summed<Real>(p).run();
  }

  void differentiate_eligibility() const {
    for (int64_t b = 0; b < p_.B; ++b)
      for (int64_t s = 0; s < p_.S; ++s) {
        const Real reach = p_.masked(b, s) ? 0 : weight_factors_.reach(b, s), kept = eligibility_factors_->kept();
        const int64_t begin = s * p_.J * p_.I, sample = b * size();
        for (int64_t k = begin; k < begin + p_.J * p_.I; ++k)
          g_.given.eligibility[sample + k] = (g_.result ? reach * g_.result[k] : 0) +
                                             (g_.traces.eligibility ? kept * g_.traces.eligibility[sample + k] : 0);
      }
  }

  // What arrives somewhere: at the weights, or at the eligibility.
  struct Source {
    const Real* matrix;  // [S, J, I]
    int64_t per_sample;  // 0: all samples share it
    Factors<Real> factors;
    Real scale;
    bool weights;
  };

  std::vector<Source> sources() const {
    std::vector<Source> sources;
    if (g_.result)
      sources.push_back(
          {g_.result, 0, weight_factors_.factors(), weight_factors_.factors().data ? Real(1) : p_.share(), true});
    if (g_.traces.eligibility)
      sources.push_back({g_.traces.eligibility, size(), eligibility_factors_->factors(), Real(1), false});
    return sources;
  }

  // The memory of one worker: for a tile of neurons of one side, G · f₊ and G · f₋ with the neurons of the other side
  // as rows, and the sums over these rows.
  struct Memory {
    Memory(const Problem<Real>& p, const Side<Real>& own, int64_t others, bool halves)
        : plus(others * kSide<Real>), minus(halves ? others * kSide<Real> : 0), rows(own, p.T, 1) {}
    Scratch<Real> plus, minus;
    SideRows<Real> rows;
  };

  // What the tasks find of a gradient that is a sum over all of them; added up in their order afterwards.
  struct Shares {
    std::vector<double> a_plus, a_minus;     // [tile, B]
    std::unique_ptr<Real[]> factor_of_step;  // [tile of a sub-network, T, B, S]: gradients of c
  };

  // A tile of own neurons against neurons [from, to) of the other side: those of sub-network s, or of all.
  struct Tile {
    bool post;
    int64_t index, s, column, count, first, from, to;
    bool adds;  // another group of sub-networks came before
  };

  int64_t tiles_of(int64_t count) const { return (count + kSide<Real> - 1) / kSide<Real>; }

  void take_side(bool post) const {
    const Side<Real>&own = post ? post_ : pre_, &other = post ? pre_ : post_;
    const bool shared = !post && !p_.own_pre;
    const int64_t count = post ? p_.J : p_.I, subnetworks = shared ? 1 : p_.S, tiles = tiles_of(count);
    const int64_t others = post ? p_.I : shared && joint_ ? p_.S * p_.J : p_.J;
    const std::vector<Source> sources = this->sources();

    Shares shares;
    if (post) {
      shares.a_plus.assign(static_cast<size_t>(p_.S * tiles * p_.B), 0);
      shares.a_minus = shares.a_plus;
      if (g_.modulation) {
        shares.factor_of_step = unwritten<Real>(tiles * p_.T * p_.B * p_.S);
        std::fill_n(shares.factor_of_step.get(), tiles * p_.T * p_.B * p_.S, Real(0));
      }
    }
    const double operations = double(p_.T * p_.B) * double(p_.S * p_.J) * double(p_.I) / lanes<Real> / 8 +
                              double(p_.T * p_.B) * double(own.per_sample);
    const int64_t workers = workers_for(operations);
    std::vector<std::unique_ptr<Memory>> memory(static_cast<size_t>(workers));
    const bool one_list = post ? !p_.own_pre : joint_;
    const int64_t listed = sources.empty() ? p_.B : listed_samples(p_, other);
    for (int64_t first = 0; first < p_.B; first += listed) {
      const int64_t samples = std::min(listed, p_.B - first);
      SideEvents<Real> lists{};
      if (!sources.empty()) {
        const bool skip_masked = shared && joint_ && p_.mask;
        const int64_t parts = one_list && !skip_masked ? 1 : p_.S;
        lists = other.spikes.bytes ? list_events<Real, uint8_t>(p_, other, first, samples, parts, skip_masked, workers)
                                   : list_events<Real, Real>(p_, other, first, samples, parts, skip_masked, workers);
      }
      // Samples are divided where there are few tiles for many workers.
      const int64_t all = subnetworks * tiles;
      const int64_t pieces = std::clamp<int64_t>(2 * workers / std::max<int64_t>(1, all), 1, samples);
      for_each_task(all * pieces, workers, [&](int64_t worker, int64_t k) {
        if (!memory[worker]) memory[worker] = std::make_unique<Memory>(p_, own, others, halves_);
        const int64_t index = k / pieces, piece = k % pieces, s = index / tiles, column = index % tiles * kSide<Real>;
        const int64_t begin = first + samples * piece / pieces, end = first + samples * (piece + 1) / pieces;
        Tile tile{post, index, s,    column, std::min(kSide<Real>, count - column), column + (shared ? 0 : s * count),
                  0,    0,     false};
        const int64_t groups = shared && !joint_ ? p_.S : 1;
        for (int64_t group = 0; group < groups; ++group) {
          if (shared && !joint_) tile.s = group;
          tile.adds = group > 0;
          tile.from = post ? (p_.own_pre ? s * p_.I : 0) : joint_ && shared ? 0 : tile.s * p_.J;
          tile.to = tile.from + others;
          take_tile(tile, sources, own, other, lists, begin, end, shares, *memory[worker]);
        }
      });
    }
    if (post) add_up(shares, tiles);
  }

  void take_tile(const Tile& tile, const std::vector<Source>& sources, const Side<Real>& own, const Side<Real>& other,
                 const SideEvents<Real>& lists, int64_t begin, int64_t end, Shares& shares, Memory& memory) const {
    const Real amplitude = p_.S ? own.amplitude[tile.s] : 0;
    const bool loads_once = sources.size() == 1 && !sources[0].per_sample;
    if (loads_once) load_matrix(tile, sources[0], 0, memory);
    for (int64_t b = begin; b < end; ++b) {
      const Neurons neurons{tile.first, tile.count, b, 1};
      const SideRows<Real>& rows = memory.rows;
      rows.clear_gradients(p_.T);
      if (own.slow || (tile.post && (g_.a_minus || g_.modulation))) {
        rows.start(own, neurons);
        rows.follow(own, neurons, amplitude, 0, p_.T);
      }
      for (const Source& source : sources) {
        if (source.weights && !(joint_ && !tile.post) && p_.masked(b, tile.s)) continue;
        if (!loads_once) load_matrix(tile, source, b, memory);
        if (other.slow)
          meet<2>(tile, source, other, lists, b, shares, memory);
        else if (other.nearest || halves_)
          meet<1>(tile, source, other, lists, b, shares, memory);
        else
          meet<0>(tile, source, other, lists, b, shares, memory);
      }
      rows.start_back(tile.adds ? Side<Real>{} : own, neurons);
      const Real of_amplitude = rows.walk_back(own, neurons, amplitude, 0, p_.T, tile.adds);
      rows.finish_back(own, neurons, tile.adds);
      if (tile.post) shares.a_plus[tile.index * p_.B + b] = of_amplitude;
    }
  }

  void load_matrix(const Tile& tile, const Source& source, int64_t b, Memory& memory) const {
    const Real* matrix = source.matrix + b * source.per_sample;
    const auto put = [&](int64_t row, int64_t lane, Vec plus, Vec minus) {
      store(memory.plus.get() + row * kSide<Real> + lane, plus);
      if (halves_) store(memory.minus.get() + row * kSide<Real> + lane, minus);
    };
    const auto take = [&](int64_t at, int64_t here, Vec& plus, Vec& minus) {
      plus = here > 0 ? load(matrix + at, here) : Vec{};
      if (!halves_) return;
      const auto f = dependences<Real>(here > 0 ? load(p_.weight + at, here) : Vec{}, p_.rule);
      minus = plus != Real(0) ? plus * f.minus : Vec{};  // f may be infinite where there is no weight
      plus = plus != Real(0) ? plus * f.plus : Vec{};
    };
    if (tile.post) {
      constexpr int L = lanes<Real>;
      for (int64_t lane = 0; lane < kSide<Real>; lane += L)
        for (int64_t i = 0; i < p_.I; i += L) {
          const int64_t here = std::min<int64_t>(L, p_.I - i);
          Vec plus[L], minus[L] = {};
          for (int k = 0; k < L; ++k) {
            const bool there = lane + k < tile.count;
            take((tile.s * p_.J + tile.column + lane + k) * p_.I + i, there ? here : 0, plus[k], minus[k]);
          }
          transpose<Real>(plus);
          if (halves_) transpose<Real>(minus);
          for (int k = 0; k < here; ++k) put(i + k, lane, plus[k], minus[k]);
        }
    } else {
      for (int64_t n = tile.from; n < tile.to; ++n)
        for (int64_t lane = 0; lane < kSide<Real>; lane += lanes<Real>) {
          Vec plus, minus{};
          const int64_t column = tile.column + lane;
          take(n * p_.I + column, std::clamp<int64_t>(p_.I - column, 0, lanes<Real>), plus, minus);
          put(n - tile.from, lane, plus, minus);
        }
    }
  }

  // Sample b: the gradients of reads and factors of the tile's neurons. Sums: 1 where the other side's reads are the
  // sums over its spikes, decayed; otherwise one for reads and one for factors; and one more with slow traces.
  template <int Sums>
  void meet(const Tile& tile, const Source& source, const Side<Real> other, const SideEvents<Real>& lists, int64_t b,
            Shares& shares, const Memory& memory) const {
    // Potentiation is post-synaptic factor · pre-synaptic read, depression the other way round, with a minus.
    const Real* const reads = (tile.post || !halves_ ? memory.plus : memory.minus).get() - tile.from * kSide<Real>;
    const Real* const counts = (!tile.post || !halves_ ? memory.plus : memory.minus).get() - tile.from * kSide<Real>;
    const Real sign = tile.post ? 1 : -1;
    const SideRows<Real>& rows = memory.rows;
    const Real amplitude = p_.S ? other.amplitude[tile.s] : 0;
    const bool exclusive = other.exclusive, one_list = tile.post ? !p_.own_pre : joint_;
    const int64_t parts = lists.parts, part = parts == 1 || one_list ? 0 : tile.s;
    const int64_t taken = one_list ? parts : 1;
    const bool of_minus = tile.post && g_.a_minus, of_modulation = tile.post && g_.modulation && source.weights;
    const int64_t* const offset = lists.offset.data();
    const uint32_t* const neuron = lists.neuron.get();
    const Real *const values = lists.spike.get(), *const adds = lists.added.get(), *const slows = lists.slow.get();

    Vec trace[V] = {}, target[V] = {};
    if (other.given)
      for (int64_t n = tile.from; n < tile.to; ++n) {
        if (!tile.post && source.weights && p_.masked(b, n / p_.J)) continue;
        const Real x = other.given[b * other.per_sample + n];
        for (int v = 0; v < V; ++v) trace[v] += x * load(reads + n * kSide<Real> + v * lanes<Real>);
      }
    if (other.target != 0) {
      for (int64_t n = tile.from; n < tile.to; ++n)
        for (int v = 0; v < V; ++v) target[v] += load(reads + n * kSide<Real> + v * lanes<Real>);
      for (int v = 0; v < V; ++v) target[v] *= other.target;
    }
    Vec of_amplitude{};
    for (int64_t t = 0; t < p_.T; ++t) {
      const int64_t list = lists.list(b, t, part), from = offset[list], to = offset[list + taken];
      Vec spike[V] = {}, added[Sums > 0 ? V : 1] = {}, slow[Sums > 1 ? V : 1] = {};
      for (int64_t k = from; k < to; ++k) {
        const int64_t at = int64_t{neuron[k]} * kSide<Real>;
        const Real value = values ? values[k] : Real(1);
        for (int v = 0; v < V; ++v) {
          const Vec row = load(counts + at + v * lanes<Real>);
          spike[v] += value * row;
          if constexpr (Sums > 1) slow[v] += slows[k] * row;
          if constexpr (Sums > 0)
            added[v] += (adds ? adds[k] : other.gain * value) * load(reads + at + v * lanes<Real>);
        }
      }
      const Real* factor = source.factors.at(t, b, p_.S ? tile.s : 0);
      const Real c = factor ? source.scale * *factor : source.scale;
      Vec of_step{};
      for (int v = 0; v < V; ++v) {
        const Vec decayed = other.decay * trace[v];
        trace[v] = decayed + (Sums > 0 ? added[Sums > 0 ? v : 0] : other.gain * spike[v]);
        const Vec read = sign * ((exclusive ? decayed : trace[v]) - target[v]);
        Vec count = amplitude * spike[v];
        if constexpr (Sums > 1) count += other.slow_amplitude * slow[v];
        count *= -sign;
        Real* const read_gradient = rows.read_gradient(t) + v * lanes<Real>;
        Real* const factor_gradient = rows.factor_gradient(t) + v * lanes<Real>;
        store(read_gradient, load(read_gradient) + c * count);
        store(factor_gradient, load(factor_gradient) + c * read);
        if (of_minus) of_amplitude -= c * spike[v] * load(rows.read(t) + v * lanes<Real>);
        if (of_modulation)
          of_step += count * load(rows.read(t) + v * lanes<Real>) + read * load(rows.factor(t) + v * lanes<Real>);
      }
      if (of_modulation) {
        const int64_t which = tile.index % tiles_of(p_.J);
        shares.factor_of_step[((which * p_.T + t) * p_.B + b) * p_.S + tile.s] = sum_of_lanes<Real>(of_step);
      }
    }
    if (tile.post) shares.a_minus[tile.index * p_.B + b] += sum_of_lanes<Real>(of_amplitude);
  }

  void add_up(const Shares& shares, int64_t tiles) const {
    for (int64_t s = 0; s < p_.S; ++s) {
      double a_plus = 0, a_minus = 0;
      for (int64_t k = s * tiles * p_.B; k < (s + 1) * tiles * p_.B; ++k)
        a_plus += shares.a_plus[k], a_minus += shares.a_minus[k];
      if (g_.a_plus) g_.a_plus[s] = Real(a_plus);
      if (g_.a_minus) g_.a_minus[s] = Real(a_minus);
    }
    if (!g_.modulation) return;
    std::fill_n(g_.modulation, p_.T * p_.B * (p_.own_modulation ? p_.S : 1), Real(0));
    const double keep = 1 - p_.rule.weight_decay, decay = p_.rule.eligibility.value_or(0);
    std::vector<double> reached(static_cast<size_t>(p_.T));
    for (int64_t b = 0; b < p_.B; ++b)
      for (int64_t s = 0; s < p_.S; ++s) {
        if (p_.masked(b, s)) continue;
        // An eligibility is paid at every later step: what the modulation of step t pays for is summed forwards.
        double eligible = paid_from_before(b, s);
        for (int64_t t = 0; t < p_.T; ++t) {
          double pairs = 0;
          for (int64_t tile = 0; tile < tiles; ++tile)
            pairs += shares.factor_of_step[((tile * p_.T + t) * p_.B + b) * p_.S + s];
          const double now = p_.rule.eligibility ? decay * eligible + pairs : pairs;
          reached[t] = p_.rule.eligibility && p_.rule.delayed ? eligible : now;
          eligible = now;
        }
        double decayed = p_.share();
        for (int64_t t = p_.T - 1; t >= 0; --t, decayed *= keep)
          g_.modulation[p_.own_modulation ? (t * p_.B + b) * p_.S + s : t * p_.B + b] += Real(decayed * reached[t]);
      }
  }

  // G · the eligibility before the first step.
  double paid_from_before(int64_t b, int64_t s) const {
    if (!p_.given.eligibility || !g_.result) return 0;
    const int64_t begin = s * p_.J * p_.I;
    double sum = 0;
    for (int64_t k = begin; k < begin + p_.J * p_.I; ++k)
      sum += double(g_.result[k]) * double(p_.given.eligibility[b * size() + k]);
    return sum;
  }

  const Problem<Real>& p_;
  Gradients<Real> g_;
  const bool halves_;  // f₊ and f₋ are not 1
  const Side<Real> pre_, post_;
  const WeightFactors<Real> weight_factors_;
  std::optional<EligibilityFactors<Real>> eligibility_factors_;
  const bool joint_;  // sub-networks meet the shared pre-synaptic side alike, and are summed
  std::unique_ptr<Real[]> unclamped_;
};
