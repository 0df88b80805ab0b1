// Rate coding for one instruction set; no include guard: each_isa.h includes it once for each.

constexpr int kElements = 64;  // encoded side by side

// Elements [begin, end) of x at all steps; a spike is the word `one`.
template <class Real, class Word>
void encode_rates(const Real* x, int64_t begin, int64_t end, int64_t size, int64_t steps, PhiloxKey key, int64_t offset,
                  Word one, Word* spikes) {
  for (int64_t first = begin; first < end; first += kElements) {
    const int64_t count = std::min<int64_t>(kElements, end - first);
    Real rate[kElements] = {};
    std::copy_n(x + first, count, rate);
    for (int64_t block = 0; 4 * block < steps; ++block) {
      uint32_t c[4][kElements];
      for (int n = 0; n < kElements; ++n) {
        const auto index = static_cast<uint64_t>(first + n) + static_cast<uint64_t>(offset);
        c[0][n] = static_cast<uint32_t>(index);
        c[1][n] = static_cast<uint32_t>(index >> 32);
        c[2][n] = static_cast<uint32_t>(block);
        c[3][n] = 0;
      }
      philox(c, key);
      for (int64_t t = 4 * block; t < std::min(4 * block + 4, steps); ++t) {
        Word row[kElements];
        const uint32_t* word = c[t % 4];
        for (int n = 0; n < kElements; ++n)
          row[n] = Real(static_cast<float>(static_cast<int32_t>(word[n] >> 8)) * 0x1p-24f) < rate[n] ? one : Word(0);
        std::copy_n(row, count, spikes + t * size + first);
      }
    }
  }
}
