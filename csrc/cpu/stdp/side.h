// One side of the synapses: its traces, forwards in time, and the gradients of its spikes and traces, backwards. No
// include guard: once per instruction set.
//
// A step finds two things on a side, and the other side the counterparts of both:
//     read    the trace as the update reads it (less x_target), met by the other side's spikes
//     factor  amplitude · spike, which meets the other side's read

template <class Real>
struct Side {
  Spikes spikes;
  int64_t per_step, per_sample;  // of the spikes; traces are [B, per_sample]
  Real decay, gain, target, slow_decay, slow_amplitude;
  const Real* amplitude;                            // [S]
  const Real *given, *given_slow;                   // traces before the first step, or null
  const Real *after, *after_slow;                   // gradients of the traces after the last step, or null
  Real *spike_gradient, *gradient, *gradient_slow;  // of the spikes and of the given traces; null where not asked for
  bool nearest, exclusive, slow;

  bool asked() const { return spike_gradient || gradient || gradient_slow; }
};

template <class Real>
Side<Real> pre_side(const Problem<Real>& p, const Gradients<Real>& g) {
  const Rule& rule = p.rule;
  const Triplet slow = rule.triplet.value_or(Triplet{});
  return {p.pre,
          p.B * p.pre_width(),
          p.pre_width(),
          Real(rule.decay_pre),
          Real(rule.gain_pre),
          Real(rule.x_target),
          Real(slow.decay_pre_slow),
          Real(slow.a_minus),
          p.a_minus,
          p.given.pre,
          p.given.pre_slow,
          g.traces.pre,
          g.traces.pre_slow,
          g.pre,
          g.given.pre,
          g.given.pre_slow,
          rule.nearest,
          rule.exclusive,
          rule.triplet.has_value()};
}

template <class Real>
Side<Real> post_side(const Problem<Real>& p, const Gradients<Real>& g) {
  const Rule& rule = p.rule;
  const Triplet slow = rule.triplet.value_or(Triplet{});
  return {p.post,
          p.B * p.S * p.J,
          p.S * p.J,
          Real(rule.decay_post),
          Real(rule.gain_post),
          0,
          Real(slow.decay_post_slow),
          Real(slow.a_plus),
          p.a_plus,
          p.given.post,
          p.given.post_slow,
          g.traces.post,
          g.traces.post_slow,
          g.post,
          g.given.post,
          g.given.post_slow,
          rule.nearest,
          rule.exclusive,
          rule.triplet.has_value()};
}

template <class Real>
struct Found {
  Vector<Real> read, slow, added;  // slow: decayed to this step; added: what the spikes add to the decayed trace
};

// One step of the traces of some neurons.
template <class Real>
inline Found<Real> advance(const Side<Real>& side, Vector<Real> spike, Vector<Real>& trace, Vector<Real>& slow) {
  const Vector<Real> zero{}, gain = broadcast(side.gain);
  const Vector<Real> decayed = side.decay * trace, decayed_slow = side.slow_decay * slow;
  const Vector<Real> added = side.nearest ? (spike != zero ? gain - decayed : zero) : gain * spike;
  trace = side.nearest ? (spike != zero ? gain : decayed) : decayed + added;
  if (side.slow) slow = side.nearest ? (spike != zero ? gain : decayed_slow) : decayed_slow + gain * spike;
  return {(side.exclusive ? decayed : trace) - side.target, decayed_slow, added};
}

template <class Real>
inline Real sum_of_lanes(Vector<Real> v) {
  Real sum = 0;
  for (int k = 0; k < lanes<Real>; ++k) sum += v[k];
  return sum;
}

// Some neurons of a side, at most kSide, in some samples: `first` is where they begin in a sample.
struct Neurons {
  int64_t first, count, sample, samples;
};

// What steps [begin, end) find there, and the gradients of it: rows [step, sample, kSide].
template <class Real>
class SideRows {
 public:
  using Vec = Vector<Real>;

  SideRows(const Side<Real>& side, int64_t steps, int64_t samples)
      : samples_(samples),
        read_(steps * samples * kSide<Real>),
        factor_(steps * samples * kSide<Real>),
        amplitude_(side.slow ? steps * samples * kSide<Real> : 0),
        read_gradient_(steps * samples * kSide<Real>),
        factor_gradient_(steps * samples * kSide<Real>),
        traces_(2 * samples * kSide<Real>),
        gradients_(2 * samples * kSide<Real>) {}

  const Real* read(int64_t step, int64_t sample = 0) const { return read_.get() + at(step, sample); }
  const Real* factor(int64_t step, int64_t sample = 0) const { return factor_.get() + at(step, sample); }
  Real* read_gradient(int64_t step, int64_t sample = 0) const { return read_gradient_.get() + at(step, sample); }
  Real* factor_gradient(int64_t step, int64_t sample = 0) const { return factor_gradient_.get() + at(step, sample); }
  // As they are between two calls of `follow`.
  Real* traces() const { return traces_.get(); }
  int64_t traces_size() const { return 2 * samples_ * kSide<Real>; }

  void clear_gradients(int64_t steps) const {
    std::fill_n(read_gradient_.get(), at(steps, 0), Real(0));
    std::fill_n(factor_gradient_.get(), at(steps, 0), Real(0));
  }

  void start(const Side<Real>& side, const Neurons& neurons) const {
    load_state(side, neurons, side.given, side.given_slow, traces_.get());
  }

  void follow(const Side<Real>& side, const Neurons& neurons, Real amplitude, int64_t begin, int64_t end) const {
    side.spikes.bytes ? follow<uint8_t>(side, neurons, amplitude, begin, end)
                      : follow<Real>(side, neurons, amplitude, begin, end);
  }

  void start_back(const Side<Real>& side, const Neurons& neurons) const {
    load_state(side, neurons, side.after, side.after_slow, gradients_.get());
  }

  // Adds to the gradients of the spikes, or writes them; returns that of the amplitude.
  Real walk_back(const Side<Real>& side, const Neurons& neurons, Real amplitude, int64_t begin, int64_t end,
                 bool adds) const {
    const auto walk = [&]<class Spike>(Spike) {
      return neurons.count == kSide<Real> ? walk_back<Spike, true>(side, neurons, amplitude, begin, end, adds)
                                          : walk_back<Spike, false>(side, neurons, amplitude, begin, end, adds);
    };
    return side.spikes.bytes ? walk(uint8_t{}) : walk(Real{});
  }

  void finish_back(const Side<Real>& side, const Neurons& neurons, bool adds) const {
    Real* const results[] = {side.gradient, side.gradient_slow};
    for (int k = 0; k < 2; ++k)
      if (results[k])
        each(neurons, [&](int64_t b, int64_t lane, int64_t here) {
          if (!here) return;
          Real* to = results[k] + (neurons.sample + b) * side.per_sample + neurons.first + lane;
          const Vec found = load(gradients_.get() + (k * samples_ + b) * kSide<Real> + lane);
          store(to, adds ? found + load(to, here) : found, here);
        });
  }

 private:
  int64_t at(int64_t step, int64_t sample) const { return (step * samples_ + sample) * kSide<Real>; }

  // visit(sample, lane, neurons there)
  template <class Visit>
  static void each(const Neurons& neurons, Visit visit) {
    for (int64_t b = 0; b < neurons.samples; ++b)
      for (int64_t lane = 0; lane < kSide<Real>; lane += lanes<Real>)
        visit(b, lane, std::clamp<int64_t>(neurons.count - lane, 0, lanes<Real>));
  }

  void load_state(const Side<Real>& side, const Neurons& neurons, const Real* fast, const Real* slow, Real* to) const {
    each(neurons, [&](int64_t b, int64_t lane, int64_t here) {
      const int64_t from = (neurons.sample + b) * side.per_sample + neurons.first + lane;
      store(to + b * kSide<Real> + lane, fast && here ? load(fast + from, here) : Vec{});
      store(to + (samples_ + b) * kSide<Real> + lane, slow && here ? load(slow + from, here) : Vec{});
    });
  }

  // Vectors of a tile, and how many of its neurons are in vector v.
  static constexpr int V = kStepVectors;
  static int64_t here(const Neurons& neurons, int v) {
    return std::clamp<int64_t>(neurons.count - v * lanes<Real>, 0, lanes<Real>);
  }

  template <class Spike>
  static Vec spikes_at(const Side<Real>& side, int64_t at, int64_t here) {
    const Spike* from = static_cast<const Spike*>(side.spikes.data) + at;
    return here == lanes<Real> ? load_spikes<Real>(from) : here ? load_spikes<Real>(from, here) : Vec{};
  }

  // By value: what is stored could otherwise be a part of it.
  template <class Spike>
  void follow(const Side<Real> side, const Neurons& neurons, Real amplitude, int64_t begin, int64_t end) const {
    for (int64_t b = 0; b < neurons.samples; ++b) {
      Real *const fast = traces_.get() + b * kSide<Real>, *const slow = fast + samples_ * kSide<Real>;
      Vec trace[V], slow_trace[V];
      for (int v = 0; v < V; ++v) trace[v] = load(fast + v * lanes<Real>), slow_trace[v] = load(slow + v * lanes<Real>);
      const int64_t from = (neurons.sample + b) * side.per_sample + neurons.first;
      for (int64_t t = begin; t < end; ++t)
        for (int v = 0; v < V; ++v) {
          const int64_t count = here(neurons, v);
          const Vec spike = spikes_at<Spike>(side, t * side.per_step + from + v * lanes<Real>, count);
          Found<Real> found = advance<Real>(side, spike, trace[v], slow_trace[v]);
          // Where there is no neuron, −target would change weights that nobody asked for until they overflow.
          for (int64_t k = count; k < lanes<Real>; ++k) found.read[k] = 0;
          const int64_t to = at(t - begin, b) + v * lanes<Real>;
          Vec factor = broadcast(amplitude);
          if (side.slow) {
            factor += side.slow_amplitude * found.slow;
            store(amplitude_.get() + to, factor);
          }
          store(read_.get() + to, found.read);
          store(factor_.get() + to, factor * spike);
        }
      for (int v = 0; v < V; ++v) store(fast + v * lanes<Real>, trace[v]), store(slow + v * lanes<Real>, slow_trace[v]);
    }
  }

  template <class Spike, bool Full>
  Real walk_back(const Side<Real> side, const Neurons& neurons, Real amplitude, int64_t begin, int64_t end,
                 bool adds) const {
    const Vec zero{};
    Vec amplitudes{};
    for (int64_t b = 0; b < neurons.samples; ++b) {
      Real *const fast = gradients_.get() + b * kSide<Real>, *const slow = fast + samples_ * kSide<Real>;
      Vec traces[V], slow_traces[V];
      for (int v = 0; v < V; ++v)
        traces[v] = load(fast + v * lanes<Real>), slow_traces[v] = load(slow + v * lanes<Real>);
      const int64_t from = (neurons.sample + b) * side.per_sample + neurons.first;
      for (int64_t t = end - 1; t >= begin; --t)
        for (int v = 0; v < V; ++v) {
          const int64_t row = at(t - begin, b) + v * lanes<Real>, which = t * side.per_step + from + v * lanes<Real>;
          const int64_t count = Full ? lanes<Real> : here(neurons, v);
          if (!count) break;
          Vec &trace = traces[v], &slow_trace = slow_traces[v];
          const Vec spike = spikes_at<Spike>(side, which, count);
          const Vec read = load(read_gradient_.get() + row), factor = load(factor_gradient_.get() + row);
          amplitudes += factor * spike;
          if (!side.exclusive) trace += read;
          Vec found = factor * (side.slow ? load(amplitude_.get() + row) : broadcast(amplitude));
          if (side.nearest) {  // a spike sets the trace: it forgets what it was
            trace = spike != zero ? zero : trace;
            slow_trace = spike != zero ? zero : slow_trace;
          } else {
            found += side.gain * (trace + slow_trace);
          }
          if (side.spike_gradient) {
            Real* to = side.spike_gradient + which;
            if (count == lanes<Real>)
              store(to, adds ? found + load(to) : found);
            else
              store(to, adds ? found + load(to, count) : found, count);
          }
          if (side.exclusive) trace += read;
          trace *= side.decay;
          if (side.slow) slow_trace = side.slow_decay * (slow_trace + side.slow_amplitude * spike * factor);
        }
      for (int v = 0; v < V; ++v)
        store(fast + v * lanes<Real>, traces[v]), store(slow + v * lanes<Real>, slow_traces[v]);
    }
    return sum_of_lanes<Real>(amplitudes);
  }

  const int64_t samples_;
  Scratch<Real> read_, factor_, amplitude_, read_gradient_, factor_gradient_, traces_, gradients_;
};
