// Rules that do not read the weights between steps: potentiation and depression of all steps are summed first. No
// include guard: once per instruction set.
//
// Summed over time, depression is a product with the post-synaptic spikes too, like potentiation: a post-synaptic spike
// meets the later pre-synaptic spikes, decayed by the time between. So with X the pre-synaptic traces and N minus the
// decayed suffix sums of the pre-synaptic spikes,
//
//     W ← kept · W + f₊(W) · Σ_r plus[r, j] · X[r, i] + f₋(W) · Σ_r minus[r, j] · N[r, i]        rows r = (b, t)
//
// and only the rows where neuron j spiked are added. Where plus and minus are the spike and f is 1, one sum of Z = X +
// N is enough. Rows of X and N, or of Z, are made for one tile of columns and one chunk of rows at a time: they stay in
// cache.

// Vectors per tile.
constexpr int kTile = ARTSY_VECTOR_BYTES == 64 ? 4 : 8;

template <class Real>
struct Tile {
  int64_t column, columns;
};

// How the rows of Z are made: what the pairs of step t count is scale · factor[t, b, s].
template <class Real>
struct RowScale {
  Factors<Real> factors;
  Real scale;
};

// The memory of one worker.
template <class Real>
struct Rows {
  explicit Rows(int64_t samples) : rows(2 * kTile * kChunkRows), starts(kTile * std::max<int64_t>(1, samples)) {}
  Scratch<Vector<Real>> rows, starts;
};

// A tile of V vectors; of a tile of one vector the last columns may be missing.
template <class Real, int V>
struct Columns {
  static constexpr int64_t width = V * lanes<Real>;
  int64_t columns;

  bool full() const { return V > 1 || columns == width; }
  template <class Spike>
  Vector<Real> spikes(const Spike* from, int v) const {
    return full() ? load_spikes<Real>(from + v * lanes<Real>) : load_spikes<Real>(from, columns);
  }
  Vector<Real> read(const Real* from, int v) const {
    return full() ? load(from + v * lanes<Real>) : load(from, columns);
  }
  void write(Real* to, int v, Vector<Real> value) const {
    if (full())
      store(to + v * lanes<Real>, value);
    else
      store(to, value, columns);
  }
};

// One sample's rows of Z (V vectors each), or of X and N (2·V), and its row before the first step: what the trace y
// that the chunk starts with counts.
template <class Real, class Spike, int V, bool Halves>
void make_rows(const Problem<Real>& p, const Columns<Real, V>& columns, int64_t column, const Chunk& chunk, int64_t b,
               int64_t s, const RowScale<Real>& how, bool keep_traces, Vector<Real>* rows, Vector<Real>* start) {
  using Vec = Vector<Real>;
  const Rule& rule = p.rule;
  const int64_t at = (p.own_pre ? (b * p.S + s) * p.I : b * p.I) + column, stride = p.B * p.pre_width();
  const Spike* spikes = static_cast<const Spike*>(p.pre.data) + chunk.step * stride + at;
  const Real* factor = how.factors.at(chunk.step, b, s);
  const int64_t factor_stride = how.factors.per_step;
  const Real a_plus = p.S ? p.a_plus[s] : 0, a_minus = p.S ? p.a_minus[s] : 0;
  const bool slow = rule.triplet.has_value();
  const Real slow_decay = slow ? Real(rule.triplet->decay_pre_slow) : 0,
             a_slow = slow ? Real(rule.triplet->a_minus) : 0;
  const Real decay = Real(rule.decay_pre), gain = Real(rule.gain_pre), target = Real(rule.x_target);
  constexpr int width = Halves ? 2 * V : V;

  const Real* before = chunk.first ? p.given.pre : p.traces.pre;
  const Real* before_slow = chunk.first ? p.given.pre_slow : p.traces.pre_slow;
  Vec x[V], x_slow[V];
  for (int v = 0; v < V; ++v) {
    x[v] = before ? columns.read(before + at, v) : Vec{};
    x_slow[v] = slow && before_slow ? columns.read(before_slow + at, v) : Vec{};
  }
  for (int64_t t = 0; t < chunk.steps; ++t) {
    const Real m = factor ? how.scale * factor[t * factor_stride] : how.scale;
    const Real m_plus = Halves ? m : m * a_plus;
    for (int v = 0; v < V; ++v) {
      const Vec spike = columns.spikes(spikes + t * stride, v), decayed = decay * x[v];
      x[v] = rule.nearest ? (spike != Real(0) ? broadcast(gain) : decayed) : decayed + gain * spike;
      rows[t * width + v] = ((rule.exclusive ? decayed : x[v]) - target) * m_plus;
      if constexpr (Halves) {
        Vec amplitude = broadcast(a_minus);
        if (slow) {
          const Vec decayed_slow = slow_decay * x_slow[v];
          amplitude += a_slow * decayed_slow;
          x_slow[v] = rule.nearest ? (spike != Real(0) ? broadcast(gain) : decayed_slow) : decayed_slow + gain * spike;
        }
        rows[t * width + V + v] = -m * spike * amplitude;
      }
    }
  }
  if (keep_traces)
    for (int v = 0; v < V; ++v) {
      columns.write(p.traces.pre + at, v, x[v]);
      if (slow) columns.write(p.traces.pre_slow + at, v, x_slow[v]);
    }

  const Real decay_post = Real(rule.decay_post), gain_post = Real(rule.gain_post);
  Vec later[V] = {};
  for (int64_t t = chunk.steps - 1; t >= 0; --t) {
    const Real m_minus = -a_minus * (factor ? how.scale * factor[t * factor_stride] : how.scale);
    for (int v = 0; v < V; ++v) {
      const Vec decayed = decay_post * later[v];
      if constexpr (Halves) {
        later[v] = decayed + rows[t * width + V + v];
        rows[t * width + V + v] = rule.exclusive ? decayed : later[v];
      } else {
        later[v] = decayed + m_minus * columns.spikes(spikes + t * stride, v);
        rows[t * width + v] += gain_post * (rule.exclusive ? decayed : later[v]);
      }
    }
  }
  for (int v = 0; v < V; ++v) start[v] = decay_post * later[v];
}

// Adds the rows at which a neuron spiked. With one vector per row several sums hide the latency of an addition.
template <class Real, int V, Values Value>
inline void add_spikes(const uint16_t* row, const Real* plus, const Real* minus, int64_t count,
                       const Vector<Real>* rows, Vector<Real> (&sum)[Value == Values::halves ? 2 * V : V]) {
  constexpr int width = Value == Values::halves ? 2 * V : V, chains = V == 1 ? 4 : 1;
  Vector<Real> partial[chains][width] = {};
  const auto add = [&](int64_t k, int chain) {
    const Vector<Real>* z = rows + int64_t(row[k]) * width;
    for (int v = 0; v < width; ++v) {
      if constexpr (Value == Values::none)
        partial[chain][v] += z[v];
      else
        partial[chain][v] += (Value == Values::size || v < V ? plus[k] : minus[k]) * z[v];
    }
  };
  int64_t k = 0;
  for (; k + chains <= count; k += chains)
    for (int chain = 0; chain < chains; ++chain) add(k + chain, chain);
  for (; k < count; ++k) add(k, 0);
  for (int chain = 0; chain < chains; ++chain)
    for (int v = 0; v < width; ++v) sum[v] += partial[chain][v];
}

// Where the sums of a chunk go.
template <class Real>
struct Target {
  Real* result;        // [S, J, I]
  const Real* source;  // with the first chunk: result = kept · source + …; null for 0
  Real kept;
  bool first, last;      // chunk that reaches this target
  bool weights;          // the weights themselves and not an eligibility
  const Real* arriving;  // gradient [S, J, I]; null where no gradient is computed
};

template <class Real>
class Summed {
 public:
  explicit Summed(const Problem<Real>& p)
      : p_(p),
        halves_(p.rule.nearest || p.rule.triplet || p.rule.dependence != Dependence::none),
        weight_factors_(p),
        shared_(!p.own_pre && (p.S == 0 || (!p.own_modulation && p.uniform_amplitudes()))) {
    if (p.rule.eligibility) eligibility_factors_.emplace(p);
  }

  void run() {
    // As many steps at a time as keep the lists, should every neuron spike, below the memory of the arguments.
    const int64_t values = halves_ ? 2 : p_.post.binary ? 0 : 1;
    const int64_t list = std::max<int64_t>(1, p_.B * p_.S * p_.J * (2 + values * int64_t(sizeof(Real))));
    const int64_t arguments =
        p_.T * p_.B * (p_.pre_width() * p_.pre.size(sizeof(Real)) + p_.S * p_.J * p_.post.size(sizeof(Real))) +
        2 * p_.S * p_.J * p_.I * int64_t(sizeof(Real));
    const int64_t steps = std::max<int64_t>(std::max<int64_t>(arguments, 8 << 20) / list, 16);
    const int64_t parts = std::max<int64_t>(1, (p_.T + steps - 1) / steps);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = p_.T * part / parts, end = p_.T * (part + 1) / parts;
      const PostSpikes<Real> spikes = p_.post.bytes ? sort<uint8_t>(begin, end) : sort<Real>(begin, end);
      if (p_.pre.bytes)
        add<uint8_t>(spikes, part == 0, part + 1 == parts);
      else
        add<Real>(spikes, part == 0, part + 1 == parts);
    }
  }

 private:
  template <class Spike>
  PostSpikes<Real> sort(int64_t begin, int64_t end) const {
    const double operations = double(end - begin) * double(p_.B * p_.S * p_.J);
    return sort_post_spikes<Real, Spike>(p_, begin, end, p_.rule.eligibility.has_value(), halves_,
                                         workers_for(operations));
  }

  template <class Spike>
  void add(const PostSpikes<Real>& spikes, bool begins, bool ends) const {
    const int64_t full = p_.I / (kTile * lanes<Real>), rest = p_.I - full * kTile * lanes<Real>;
    const int64_t tiles = full + (rest + lanes<Real> - 1) / lanes<Real>;
    const double operations =
        (double(spikes.base.back()) + double(p_.T * p_.B) * 8 + double(p_.S * p_.J)) * double(p_.I) / lanes<Real>;
    const int64_t workers = workers_for(operations);
    // Neurons are divided where their weights of one tile would not stay in cache from chunk to chunk, or where there
    // are few tiles for many workers. Each part makes the rows anew, and one of them writes the traces while others may
    // still need the old ones: then there must be one chunk only.
    const bool divisible = begins && ends && spikes.chunks[0].last && !p_.rule.eligibility;
    constexpr int64_t cached = (128 << 10) / (kTile * ARTSY_VECTOR_BYTES), fewest = 64;
    const int64_t neurons = p_.S * p_.J;
    const int64_t parts = !divisible
                              ? 1
                              : std::max({int64_t{1}, neurons / cached,
                                          std::min(2 * workers / std::max<int64_t>(1, tiles), neurons / fewest)});
    std::vector<std::unique_ptr<Rows<Real>>> memory(static_cast<size_t>(workers));
    for_each_task(tiles * parts, workers, [&](int64_t worker, int64_t k) {
      if (!memory[worker]) memory[worker] = std::make_unique<Rows<Real>>(spikes.samples);
      const int64_t tile = k % tiles, part = k / tiles;  // the weights of a part are near each other
      const Part mine{neurons * part / parts, neurons * (part + 1) / parts, part == 0, begins, ends};
      const int64_t column =
          std::min(tile, full) * kTile * lanes<Real> + std::max<int64_t>(0, tile - full) * lanes<Real>;
      if (tile < full)
        add_tile<Spike, kTile>(spikes, mine, column, *memory[worker]);
      else
        add_tile<Spike, 1>(spikes, mine, column, *memory[worker]);
    });
  }

  struct Part {
    int64_t begin, end;  // of the post-synaptic neurons, over all sub-networks
    bool first;
    bool begins, ends;  // the call
  };

  template <class Spike, int V>
  void add_tile(const PostSpikes<Real>& spikes, const Part& part, int64_t column, Rows<Real>& memory) const {
    const Columns<Real, V> columns{std::min<int64_t>(V * lanes<Real>, p_.I - column)};
    const auto chunks = static_cast<int64_t>(spikes.chunks.size());
    for (int64_t c = 0; c < chunks; ++c) {
      const Chunk& chunk = spikes.chunks[c];
      const bool begins = part.begins && c == 0, ends = part.ends && c + 1 == chunks;
      const Target<Real> weights{
          p_.result, p_.arriving ? p_.arriving : p_.weight, weight_factors_.kept(), begins, ends, true, p_.arriving};
      const RowScale<Real> how{weight_factors_.factors(), weight_factors_.factors().data ? Real(1) : p_.share()};
      const bool eligible = eligibility_factors_ && chunk.samples && (!p_.arriving || p_.arriving_eligibility);
      add_chunk<Spike, V>(spikes, c, part, column, columns, how, weights, part.first && !eligible, memory);
      if (!eligible) continue;
      const int64_t sample = chunk.sample * p_.S * p_.J * p_.I;
      const Target<Real> kept =
          p_.arriving ? Target<Real>{p_.result, nullptr, 0, false, false, false, p_.arriving_eligibility + sample}
                      : Target<Real>{p_.traces.eligibility + sample,
                                     p_.given.eligibility ? p_.given.eligibility + sample : nullptr,
                                     eligibility_factors_->kept(),
                                     chunk.first,
                                     chunk.last,
                                     false,
                                     nullptr};
      add_chunk<Spike, V>(spikes, c, part, column, columns, {eligibility_factors_->factors(), Real(1)}, kept,
                          part.first, memory);
    }
  }

  template <class Spike, int V>
  void add_chunk(const PostSpikes<Real>& spikes, int64_t c, const Part& part, int64_t column,
                 const Columns<Real, V>& columns, const RowScale<Real>& how, const Target<Real>& target,
                 bool keep_traces, Rows<Real>& memory) const {
    const auto make = [&](int64_t s, bool keep) {
      const Chunk& chunk = spikes.chunks[c];
      for (int64_t k = 0; k < chunk.samples; ++k) {
        Vector<Real>* rows = memory.rows.get() + k * chunk.steps * (halves_ ? 2 * V : V);
        Vector<Real>* start = memory.starts.get() + k * V;
        if (halves_)
          make_rows<Real, Spike, V, true>(p_, columns, column, chunk, chunk.sample + k, s, how, keep, rows, start);
        else
          make_rows<Real, Spike, V, false>(p_, columns, column, chunk, chunk.sample + k, s, how, keep, rows, start);
      }
    };
    if (shared_) make(0, keep_traces);
    for (int64_t s = 0; s < p_.S; ++s) {
      const int64_t begin = std::max(part.begin, s * p_.J), end = std::min(part.end, (s + 1) * p_.J);
      // Traces of shared spikes are read for every sub-network before the last one replaces them.
      const bool keep = keep_traces && (p_.own_pre || s + 1 == p_.S);
      if (!shared_ && (begin < end || keep)) make(s, keep);
      if (begin >= end) continue;
      switch (spikes.values) {
        case Values::none:
          add_neurons<V, Values::none>(spikes, c, s, begin - s * p_.J, end - s * p_.J, column, columns, target, memory);
          break;
        case Values::size:
          add_neurons<V, Values::size>(spikes, c, s, begin - s * p_.J, end - s * p_.J, column, columns, target, memory);
          break;
        case Values::halves:
          add_neurons<V, Values::halves>(spikes, c, s, begin - s * p_.J, end - s * p_.J, column, columns, target,
                                         memory);
          break;
      }
    }
  }

  template <int V, Values Value>
  void add_neurons(const PostSpikes<Real>& spikes, int64_t c, int64_t s, int64_t begin, int64_t end, int64_t column,
                   const Columns<Real, V>& columns, const Target<Real>& target, const Rows<Real>& memory) const {
    constexpr bool halves = Value == Values::halves;
    const Chunk& chunk = spikes.chunks[c];
    const int64_t which = c * p_.S + s, base = spikes.base[which];
    const uint32_t* offset = spikes.offset.get() + which * (p_.J + 1);
    // Eligibility lists the spikes of masked samples too; there a chunk is one sample.
    const bool skipped = target.weights && eligibility_factors_ && chunk.samples && p_.masked(chunk.sample, s);
    for (int64_t j = begin; j < end; ++j) {
      Vector<Real> sum[halves ? 2 * V : V] = {};
      if (!skipped) {
        const int64_t from = base + offset[j];
        add_spikes<Real, V, Value>(spikes.row.get() + from, spikes.plus.get() + from, spikes.minus.get() + from,
                                   offset[j + 1] - offset[j], memory.rows.get(), sum);
        if (spikes.start)
          for (int64_t k = 0; k < chunk.samples; ++k) {
            const Real y = spikes.start[((c * spikes.samples + k) * p_.S + s) * p_.J + j];
            for (int v = 0; v < V; ++v) sum[halves ? V + v : v] += y * memory.starts.get()[k * V + v];
          }
      }
      finish<V, halves>(s, (s * p_.J + j) * p_.I + column, columns, target, sum);
    }
  }

  template <int V, bool Halves>
  void finish(int64_t s, int64_t at, const Columns<Real, V>& columns, const Target<Real>& target,
              const Vector<Real>* sum) const {
    for (int v = 0; v < V; ++v) {
      Vector<Real> w{};
      if (!target.first)
        w = columns.read(target.result + at, v);
      else if (target.source)
        w = target.kept * columns.read(target.source + at, v);
      if (target.first && target.weights && p_.given.eligibility) w += paid_from_before(s, at, columns, v);
      if constexpr (Halves) {
        auto f = target.arriving ? slopes<Real>(columns.read(p_.weight + at, v), p_.rule)
                                 : dependences<Real>(columns.read(p_.weight + at, v), p_.rule);
        if (target.arriving) {
          const Vector<Real> arriving = columns.read(target.arriving + at, v);
          f.plus *= arriving, f.minus *= arriving;
        }
        w += f.plus * sum[v] + f.minus * sum[V + v];
      } else {
        w += sum[v];
      }
      if (target.weights && target.last && p_.rule.clamp == Clamp::end) w = clamped<Real>(w, p_.rule);
      columns.write(target.result + at, v, w);
    }
    if (target.weights && target.last) consolidate(p_, at, columns.columns);
  }

  // What the given eligibilities count in the weights.
  template <int V>
  Vector<Real> paid_from_before(int64_t s, int64_t at, const Columns<Real, V>& columns, int v) const {
    Vector<Real> sum{};
    for (int64_t b = 0; b < p_.B; ++b)
      if (!p_.masked(b, s))
        sum += weight_factors_.reach(b, s) * columns.read(p_.given.eligibility + b * p_.S * p_.J * p_.I + at, v);
    return sum;
  }

  const Problem<Real>& p_;
  const bool halves_;
  const WeightFactors<Real> weight_factors_;
  std::optional<EligibilityFactors<Real>> eligibility_factors_;
  const bool shared_;
};
