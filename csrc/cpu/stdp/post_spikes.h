// The post-synaptic spikes of a stretch of time, sorted by neuron. No include guard: once per instruction set.
//
// Chunks are cut so that the rows of Z that belong to one of them stay in cache. Row r of a chunk is sample r / steps
// and step r % steps of it.

struct Chunk {
  int64_t sample, samples, step, steps;
  bool first, last;  // of its samples' chunks, over the whole call
};

// What an update needs to know of a post-synaptic spike besides when it was.
enum class Values {
  none,    // all are 1
  size,    // a graded spike
  halves,  // potentiation and depression count it differently
};

template <class Real>
struct PostSpikes {
  std::vector<Chunk> chunks;
  int64_t samples = 0;  // at most, in a chunk
  Values values = Values::none;
  std::vector<int64_t> base;           // [chunk, s]: where its spikes begin
  std::unique_ptr<uint32_t[]> offset;  // [chunk, s, J + 1]: where the spikes of neuron j begin, from base
  std::unique_ptr<uint16_t[]> row;
  std::unique_ptr<Real[]> plus, minus;  // value of each spike: plus with `size`, both with `halves`
  std::unique_ptr<Real[]> start;        // [chunk, sample, s, J]: y before the chunk; null where it is 0
};

constexpr int64_t kChunkRows = 256;

inline std::vector<Chunk> chunks_of(int64_t B, int64_t T, int64_t begin, int64_t end, bool sample_by_sample) {
  std::vector<Chunk> chunks;
  const int64_t steps = end - begin, parts = std::max<int64_t>(1, (steps + kChunkRows - 1) / kChunkRows);
  const int64_t samples = sample_by_sample || parts > 1 ? 1 : kChunkRows / std::max<int64_t>(1, steps);
  for (int64_t b = 0; b < B; b += samples)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = begin + steps * part / parts, to = begin + steps * (part + 1) / parts;
      chunks.push_back({b, std::min(samples, B - b), from, to - from, from == 0, to == T});
    }
  if (chunks.empty()) chunks.push_back({0, 0, begin, steps, begin == 0, end == T});
  return chunks;
}

// Bit j is set where flag[j] is; flags are 0 or 1 and readable up to a multiple of 64.
inline uint64_t bits_of(const uint8_t* flags) {
  static_assert(std::endian::native == std::endian::little, "the lowest byte of a word is its first flag");
  uint64_t bits = 0;
  for (int k = 0; k < 8; ++k) {
    uint64_t word;
    std::memcpy(&word, flags + 8 * k, sizeof(word));
    bits |= (word * 0x0102040810204080 >> 56) << (8 * k);
  }
  return bits;
}

template <class Visit>
inline void for_each_set(const uint8_t* flags, int64_t J, Visit visit) {
  for (int64_t j = 0; j < J; j += 64)
    for (uint64_t bits = bits_of(flags + j); bits; bits &= bits - 1) visit(j + std::countr_zero(bits));
}

// The traces of the neurons of one sample and sub-network, and what their spikes of one step are worth.
template <class Real>
struct PostSide {
  PostSide(const Problem<Real>& p, int64_t J)
      : rule(p.rule),
        flags(static_cast<size_t>(J + 63) / 64 * 64, 0),
        plus(static_cast<size_t>(J)),
        minus(static_cast<size_t>(J)) {}

  template <class Spike>
  void step(const Spike* __restrict spike, int64_t J, Real* __restrict y, Real* __restrict y_slow, Real a_plus,
            Values values) {
    const Real decay = Real(rule.decay_post), gain = Real(rule.gain_post);
    uint8_t* __restrict flag = flags.data();
    for (int64_t j = 0; j < J; ++j) flag[j] = spike[j] != 0;
    if (values != Values::none) worth(spike, J, y, y_slow, a_plus, values);
    if (rule.nearest)
      for (int64_t j = 0; j < J; ++j) y[j] = spike[j] != 0 ? gain : decay * y[j];
    else
      for (int64_t j = 0; j < J; ++j) y[j] = decay * y[j] + gain * Real(spike[j]);
    if (rule.triplet) {
      const Real slow = Real(rule.triplet->decay_post_slow);
      if (rule.nearest)
        for (int64_t j = 0; j < J; ++j) y_slow[j] = spike[j] != 0 ? gain : slow * y_slow[j];
      else
        for (int64_t j = 0; j < J; ++j) y_slow[j] = slow * y_slow[j] + gain * Real(spike[j]);
    }
  }

  const Rule& rule;
  std::vector<uint8_t> flags;
  std::vector<Real> plus, minus;

 private:
  template <class Spike>
  void worth(const Spike* spike, int64_t J, const Real* y, const Real* y_slow, Real a_plus, Values values) {
    if (values == Values::size) {
      for (int64_t j = 0; j < J; ++j) plus[j] = Real(spike[j]);
      return;
    }
    const Real decay = Real(rule.decay_post), gain = Real(rule.gain_post);
    for (int64_t j = 0; j < J; ++j) plus[j] = a_plus * Real(spike[j]);
    if (rule.triplet) {
      const Real a_slow = Real(rule.triplet->a_plus * rule.triplet->decay_post_slow);
      for (int64_t j = 0; j < J; ++j) plus[j] += a_slow * y_slow[j] * Real(spike[j]);
    }
    // What a spike adds to the trace: with nearest pairing, what is missing up to the gain.
    if (rule.nearest)
      for (int64_t j = 0; j < J; ++j) minus[j] = gain - decay * y[j];
    else
      for (int64_t j = 0; j < J; ++j) minus[j] = gain * Real(spike[j]);
  }
};

template <class Real, class Spike>
bool all_are_1(const Spike* spike, int64_t count) {
  bool other = false;
  for (int64_t k = 0; k < count; ++k) other |= spike[k] != 0 && spike[k] != 1;
  return !other;
}

// Counts the spikes of each neuron: offset[j + 1] of the chunk.
template <class Real, class Spike>
void count(const Problem<Real>& p, const Chunk& chunk, int64_t s, bool all, uint32_t* __restrict offset) {
  std::fill_n(offset, p.J + 1, 0);
  const auto* post = static_cast<const Spike*>(p.post.data);
  for (int64_t b = chunk.sample; b < chunk.sample + chunk.samples; ++b) {
    if (!all && p.masked(b, s)) continue;
    for (int64_t t = chunk.step; t < chunk.step + chunk.steps; ++t) {
      const Spike* __restrict spike = post + ((t * p.B + b) * p.S + s) * p.J;
      for (int64_t j = 0; j < p.J; ++j) offset[j + 1] += spike[j] != 0;
    }
  }
  for (int64_t j = 0; j < p.J; ++j) offset[j + 1] += offset[j];
}

// Writes the spikes of chunk c and sub-network s, and takes the traces from its first step to its last.
template <class Real, class Spike>
void fill(const Problem<Real>& p, int64_t c, int64_t s, bool all, PostSide<Real>& side, PostSpikes<Real>& spikes) {
  const Chunk& chunk = spikes.chunks[c];
  const int64_t J = p.J, which = c * p.S + s, base = spikes.base[which];
  const uint32_t* offset = spikes.offset.get() + which * (J + 1);
  std::vector<uint32_t> next(offset, offset + J);
  const auto* post = static_cast<const Spike*>(p.post.data);
  for (int64_t k = 0; k < chunk.samples; ++k) {
    const int64_t b = chunk.sample + k, neuron = (b * p.S + s) * J;
    const bool kept = all || !p.masked(b, s);
    Real* y = p.traces.post + neuron;
    Real* y_slow = p.rule.triplet ? p.traces.post_slow + neuron : nullptr;
    if (spikes.start) {
      Real* start = spikes.start.get() + ((c * spikes.samples + k) * p.S + s) * J;
      if (kept)
        std::copy_n(y, J, start);
      else
        std::fill_n(start, J, Real(0));
    }
    for (int64_t t = 0; t < chunk.steps; ++t) {
      const Spike* spike = post + (((chunk.step + t) * p.B + b) * p.S + s) * J;
      side.step(spike, J, y, y_slow, p.a_plus[s], spikes.values);
      if (!kept) continue;
      const auto row = static_cast<uint16_t>(k * chunk.steps + t);
      for_each_set(side.flags.data(), J, [&](int64_t j) {
        const int64_t at = base + next[j]++;
        spikes.row[at] = row;
        if (spikes.values != Values::none) spikes.plus[at] = side.plus[j];
        if (spikes.values == Values::halves) spikes.minus[at] = side.minus[j];
      });
    }
  }
}

// Sorts the spikes of steps [begin, end) of all samples. With `all`, those of masked samples too, and every chunk is
// one sample: their eligibility wants them.
template <class Real, class Spike>
PostSpikes<Real> sort_post_spikes(const Problem<Real>& p, int64_t begin, int64_t end, bool all, bool halves,
                                  int64_t workers) {
  PostSpikes<Real> spikes;
  spikes.chunks = chunks_of(p.B, p.T, begin, end, all);
  for (const Chunk& chunk : spikes.chunks) spikes.samples = std::max(spikes.samples, chunk.samples);
  const auto chunks = static_cast<int64_t>(spikes.chunks.size());
  const int64_t J = p.J, lists = chunks * p.S;
  spikes.offset = unwritten<uint32_t>(lists * (J + 1));
  const auto* post = static_cast<const Spike*>(p.post.data);
  std::atomic<bool> ones{true};
  for_each_task(lists, workers, [&](int64_t, int64_t k) {
    count<Real, Spike>(p, spikes.chunks[k / p.S], k % p.S, all, spikes.offset.get() + k * (J + 1));
  });
  if (!halves && !p.post.binary)
    for_each_task(end - begin, workers, [&](int64_t, int64_t t) {
      const int64_t step = p.B * p.S * J;
      if (ones.load(std::memory_order_relaxed) && !all_are_1<Real>(post + (begin + t) * step, step))
        ones.store(false, std::memory_order_relaxed);
    });
  spikes.values = halves ? Values::halves : ones ? Values::none : Values::size;

  spikes.base.assign(static_cast<size_t>(lists) + 1, 0);
  for (int64_t k = 0; k < lists; ++k) spikes.base[k + 1] = spikes.base[k] + spikes.offset[k * (J + 1) + J];
  const int64_t total = spikes.base[lists];
  spikes.row = unwritten<uint16_t>(total);
  if (spikes.values != Values::none) spikes.plus = unwritten<Real>(total);
  if (spikes.values == Values::halves) spikes.minus = unwritten<Real>(total);
  const bool starts = p.given.post || begin > 0 || !(spikes.chunks[0].last || p.B == 0);
  if (starts) spikes.start = unwritten<Real>(chunks * spikes.samples * p.S * J);

  // Chunks of the same samples follow each other in time, and so do their traces: one task for all of them.
  const bool split = p.B > 0 && chunks > 1 && spikes.chunks[1].sample == spikes.chunks[0].sample;
  const int64_t parts = split ? chunks / p.B : 1;
  for_each_task(chunks / parts * p.S, workers, [&](int64_t, int64_t k) {
    PostSide<Real> side(p, J);
    for (int64_t part = 0; part < parts; ++part)
      fill<Real, Spike>(p, k / p.S * parts + part, k % p.S, all, side, spikes);
  });
  return spikes;
}
