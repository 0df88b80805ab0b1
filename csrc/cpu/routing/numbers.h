// Rows of numbers as vectors of the type they are computed in: bfloat16 and float16 as float. Included once per
// instruction set, after simd.h.

typedef uint32_t Words __attribute__((vector_size(ARTSY_VECTOR_BYTES)));

// In the upper half of each word, to the nearest, ties to even.
inline Words rounded_to_bfloat16(Vector<float> v) {
  const Words bits = (Words)v;
  return v == v ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
}

template <class Count>
constexpr bool is_constant = !std::is_integral_v<Count>;

template <class Stored>
inline Vector<Real<Stored>> load_real(const Stored* from) {
  if constexpr (std::is_same_v<Stored, Real<Stored>>) {
    return load(from);
  } else {
#if ARTSY_VECTOR_BYTES == 64
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if constexpr (std::is_same_v<Stored, Float16>) return _mm512_cvtph_ps(bits);
    return (Vector<float>)((Words)_mm512_cvtepu16_epi32(bits) << 16);
#elif ARTSY_VECTOR_BYTES == 32
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (std::is_same_v<Stored, Float16>) return _mm256_cvtph_ps(bits);
    return (Vector<float>)((Words)_mm256_cvtepu16_epi32(bits) << 16);
#else
    Vector<float> v;
    for (int i = 0; i < lanes<float>; ++i) v[i] = to_float(from[i]);
    return v;
#endif
  }
}

template <class Stored>
inline void store_real(Stored* to, Vector<Real<Stored>> v) {
  if constexpr (std::is_same_v<Stored, Real<Stored>>) {
    store(to, v);
  } else {
#if ARTSY_VECTOR_BYTES == 64
    __m256i bits;
    if constexpr (std::is_same_v<Stored, Float16>) {
      bits = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    } else {
#if ARTSY_BFLOAT16_DOT
      bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
      bits = _mm512_cvtepi32_epi16((__m512i)(rounded_to_bfloat16(v) >> 16));
#endif
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
#elif ARTSY_VECTOR_BYTES == 32
    if constexpr (std::is_same_v<Stored, Float16>) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    } else {
      const __m256i words = (__m256i)(rounded_to_bfloat16(v) >> 16);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                       _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
#else
    for (int i = 0; i < lanes<float>; ++i) to[i] = from_real<Stored>(v[i]);
#endif
  }
}

// The first n lanes; the others are 0, and stay as they are in memory.
template <class Stored, class Count>
inline Vector<Real<Stored>> load_real(const Stored* from, Count n) {
  if constexpr (is_constant<Count>) {
    return load_real(from);
  } else {
    Stored some[lanes<Real<Stored>>] = {};
    std::memcpy(some, from, static_cast<size_t>(n) * sizeof(Stored));
    return load_real(static_cast<const Stored*>(some));
  }
}

template <class Stored, class Count>
inline void store_real(Stored* to, Vector<Real<Stored>> v, Count n) {
  if constexpr (is_constant<Count>) {
    store_real(to, v);
  } else {
    Stored all[lanes<Real<Stored>>];
    store_real(all, v);
    std::memcpy(to, all, static_cast<size_t>(n) * sizeof(Stored));
  }
}

// Past the caches; `to` must begin at a vector's boundary.
template <class Stored>
inline void stream_real(Stored* to, Vector<Real<Stored>> v) {
#if ARTSY_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<Stored, float>) return _mm512_stream_ps(to, v);
  if constexpr (sizeof(Stored) == 2) {
    Stored numbers[lanes<float>];
    store_real(numbers, v);
    __m256i bits;
    std::memcpy(&bits, numbers, sizeof(bits));
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits);
  }
#elif ARTSY_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<Stored, float>) return _mm256_stream_ps(to, v);
#endif
  store_real(to, v);
}

// An output that is written once. What is so large that whoever reads it will not find it in the caches does not go
// through them either: a line need not be read before it is written.
template <class Stored>
class Output {
 public:
  Output(Stored* data, int64_t rows, int64_t row)
      : data(data),
        streams(rows * row * static_cast<int64_t>(sizeof(Stored)) >= large && row % line == 0 &&
                reinterpret_cast<uintptr_t>(data) % 64 == 0) {}

  // n lanes from position `at` on, which in a row is a multiple of the lanes.
  template <class Count>
  [[gnu::always_inline]] void write(int64_t at, Vector<Real<Stored>> v, Count n) const {
    if constexpr (is_constant<Count>)
      if (streams) return stream_real(data + at, v);
    store_real(data + at, v, n);
  }

 private:
  static constexpr int64_t large = int64_t{8} << 20, line = 64 / sizeof(Stored);
  Stored* data;
  bool streams;
};

// step(i, n) for the n lanes from i on: whole vectors, where n is a constant, then what is left.
template <class Number, class Step>
[[gnu::always_inline]] inline void for_vectors(int64_t size, const Step& step) {
  int64_t i = 0;
  for (; i + lanes<Number> <= size; i += lanes<Number>) step(i, std::integral_constant<int64_t, lanes<Number>>());
  if (i < size) step(i, size - i);
}

template <class Number>
constexpr int64_t whole_vectors(int64_t size) {
  return (size + lanes<Number> - 1) / lanes<Number> * lanes<Number>;
}

// As the numbers that are computed with, up to whole vectors; behind `size` they are 0.
template <class Stored>
inline void copy_vectors(const Stored* from, int64_t size, Real<Stored>* to) {
  for_vectors<Real<Stored>>(size, [&](int64_t i, auto n) { store(to + i, load_real(from + i, n)); });
}
