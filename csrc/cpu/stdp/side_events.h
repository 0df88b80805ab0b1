// The spikes of one side, listed by sample and step, for as many samples at a time as memory is granted. No include
// guard: once per instruction set.

template <class Real>
struct SideEvents {
  int64_t sample, samples, T, parts;
  std::vector<int64_t> offset;         // [sample, step, part]: where its events begin
  std::unique_ptr<uint32_t[]> neuron;  // of all parts
  // Of each event; null where all spikes are 1, pairing is "all", or there are no slow traces.
  std::unique_ptr<Real[]> spike, added, slow;

  int64_t list(int64_t b, int64_t t, int64_t part) const { return ((b - sample) * T + t) * parts + part; }
};

// Bit n of `fired` is set where spike[n] is not 0, n < count <= 64; `graded`: one is not 1 either.
struct Word {
  uint64_t fired;
  bool graded;
};

template <class Real>
inline Word word_of(const uint8_t* spike, int64_t count) {
  uint8_t flags[64] = {}, others = 0;
  for (int64_t n = 0; n < count; ++n) flags[n] = spike[n] != 0, others |= spike[n] & 0xfe;
  return {bits_of(flags), others != 0};
}

template <class Real>
inline Word word_of(const Real* spike, int64_t count) {
  uint64_t fired = 0;
  uint32_t others = 0;
  for (int64_t n = 0; n < count; n += lanes<Real>) {
    const int64_t here = std::min<int64_t>(lanes<Real>, count - n);
    const Vector<Real> v = here == lanes<Real> ? load(spike + n) : load(spike + n, here);
    fired |= uint64_t{nonzero_lanes<Real>(v)} << n;
    others |= nonzero_lanes<Real>(v * v - v);
  }
  return {fired, others != 0};
}

// With every neuron spiking, lists take no more memory than the arguments do.
template <class Real>
int64_t listed_samples(const Problem<Real>& p, const Side<Real>& side) {
  const int64_t arguments =
      p.T * p.B * (p.pre_width() * p.pre.size(sizeof(Real)) + p.S * p.J * p.post.size(sizeof(Real))) +
      2 * p.S * p.J * p.I * int64_t(sizeof(Real));
  const int64_t values = int64_t{!side.spikes.binary} + int64_t{side.nearest} + int64_t{side.slow};
  const int64_t list = p.T * side.per_sample * int64_t(sizeof(uint32_t) + values * sizeof(Real));
  return std::clamp<int64_t>(std::max<int64_t>(arguments, 8 << 20) / std::max<int64_t>(1, list), 1,
                             std::max<int64_t>(1, p.B));
}

// Of samples [sample, sample + samples). A sample's neurons are divided into equal parts; part s of a masked sample is
// left out with `skip_masked`.
template <class Real, class Spike>
SideEvents<Real> list_events(const Problem<Real>& p, const Side<Real>& side, int64_t sample, int64_t samples,
                             int64_t parts, bool skip_masked, int64_t workers) {
  const int64_t N = side.per_sample, width = N / std::max<int64_t>(1, parts), words = (width + 63) / 64;
  SideEvents<Real> lists{sample, samples, p.T, parts, {}, nullptr, nullptr, nullptr, nullptr};
  lists.offset.assign(static_cast<size_t>(samples * p.T * parts) + 1, 0);
  const auto fired = unwritten<uint64_t>(samples * p.T * parts * words);  // [sample, step, part, word] bits
  const auto* all = static_cast<const Spike*>(side.spikes.data);
  const auto row = [&](int64_t b, int64_t t, int64_t s) { return all + t * side.per_step + b * N + s * width; };

  std::atomic<bool> ones{true};
  for_each_task(samples, workers, [&](int64_t, int64_t k) {
    bool graded = false;
    for (int64_t t = 0; t < p.T; ++t)
      for (int64_t s = 0; s < parts; ++s) {
        if (skip_masked && p.masked(sample + k, s)) continue;
        const int64_t list = lists.list(sample + k, t, s);
        for (int64_t word = 0; word < words; ++word) {
          const int64_t from = word * 64;
          const Word found = word_of<Real>(row(sample + k, t, s) + from, std::min<int64_t>(64, width - from));
          fired[list * words + word] = found.fired;
          lists.offset[list + 1] += std::popcount(found.fired);
          graded |= found.graded;
        }
      }
    if (graded) ones.store(false, std::memory_order_relaxed);
  });
  for (size_t k = 1; k < lists.offset.size(); ++k) lists.offset[k] += lists.offset[k - 1];
  const int64_t total = lists.offset.back();
  lists.neuron = unwritten<uint32_t>(total);
  if (!ones) lists.spike = unwritten<Real>(total);
  if (side.nearest) lists.added = unwritten<Real>(total);
  if (side.slow) lists.slow = unwritten<Real>(total);

  for_each_task(samples, workers, [&](int64_t, int64_t k) {
    const int64_t b = sample + k;
    const bool traced = side.nearest || side.slow;
    uint32_t* const neuron = lists.neuron.get();
    Real *const spikes = lists.spike.get(), *const adds = lists.added.get(), *const slows = lists.slow.get();
    std::vector<Real> trace(traced ? N + lanes<Real> : 0, 0), slow(trace), added(trace), slow_spike(trace);
    if (traced && side.given) std::copy_n(side.given + b * N, N, trace.data());
    if (traced && side.given_slow) std::copy_n(side.given_slow + b * N, N, slow.data());
    for (int64_t t = 0; t < p.T; ++t)
      for (int64_t s = 0; s < parts; ++s) {
        const Spike* spike = row(b, t, s);
        if (traced)
          for (int64_t n = 0; n < width; n += lanes<Real>) {
            const int64_t here = std::min<int64_t>(lanes<Real>, width - n), at = s * width + n;
            Vector<Real> x = load(trace.data() + at, here), x_slow = load(slow.data() + at, here);
            const Vector<Real> now = load_spikes<Real>(spike + n, here);
            const Found<Real> found = advance<Real>(side, now, x, x_slow);
            store(trace.data() + at, x, here), store(slow.data() + at, x_slow, here);
            store(added.data() + n, found.added), store(slow_spike.data() + n, found.slow * now);
          }
        if (skip_masked && p.masked(b, s)) continue;
        const int64_t list = lists.list(b, t, s);
        int64_t next = lists.offset[list];
        for (int64_t word = 0; word < words; ++word)
          for (uint64_t bits = fired[list * words + word]; bits; bits &= bits - 1, ++next) {
            const int64_t n = word * 64 + std::countr_zero(bits);
            neuron[next] = static_cast<uint32_t>(s * width + n);
            if (spikes) spikes[next] = Real(spike[n]);
            if (adds) adds[next] = added[n];
            if (slows) slows[next] = slow_spike[n];
          }
      }
  });
  return lists;
}
