// Vectors of ARTSY_VECTOR_BYTES; no include guard: each_isa.h includes it once per instruction set, by way of the
// kernels.

template <class Real>
struct Simd {
  static constexpr int lanes = ARTSY_VECTOR_BYTES / sizeof(Real);
  typedef Real Vector __attribute__((vector_size(ARTSY_VECTOR_BYTES)));
};

template <class Real>
using Vector = typename Simd<Real>::Vector;

template <class Real>
constexpr int lanes = Simd<Real>::lanes;

template <class Real>
inline Vector<Real> broadcast(Real value) {
  return value - Vector<Real>{};
}

template <class Real>
inline Vector<Real> load(const Real* from) {
  Vector<Real> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class Real>
inline void store(Real* to, Vector<Real> v) {
  std::memcpy(to, &v, sizeof(v));
}

// The first n lanes; the others are 0, and stay as they are in memory.
template <class Real>
inline Vector<Real> load(const Real* from, int64_t n) {
  Vector<Real> v{};
  std::memcpy(&v, from, static_cast<size_t>(n) * sizeof(Real));
  return v;
}

template <class Real>
inline void store(Real* to, Vector<Real> v, int64_t n) {
  std::memcpy(to, &v, static_cast<size_t>(n) * sizeof(Real));
}

// Bytes as numbers. GCC takes a conversion of vectors apart, byte by byte, where it has one instruction.
inline Vector<float> load_bytes(const uint8_t* from, float) {
#if ARTSY_VECTOR_BYTES == 64
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif ARTSY_VECTOR_BYTES == 32
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Vector<float> v;
  for (int i = 0; i < lanes<float>; ++i) v[i] = from[i];
  return v;
#endif
}

inline Vector<double> load_bytes(const uint8_t* from, double) {
#if ARTSY_VECTOR_BYTES == 64
  return _mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#elif ARTSY_VECTOR_BYTES == 32
  return _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_loadu_si32(from)));
#else
  Vector<double> v;
  for (int i = 0; i < lanes<double>; ++i) v[i] = from[i];
  return v;
#endif
}

template <class Real>
inline Vector<Real> load_spikes(const Real* from) {
  return load(from);
}

template <class Real>
inline Vector<Real> load_spikes(const uint8_t* from) {
  return load_bytes(from, Real{});
}

template <class Real, class Spike>
inline Vector<Real> load_spikes(const Spike* from, int64_t n) {
  Spike all[lanes<Real>] = {};
  std::memcpy(all, from, static_cast<size_t>(n) * sizeof(Spike));
  return load_spikes<Real>(static_cast<const Spike*>(all));
}

// NaN stays NaN, as torch.clamp has it: the instructions give their second operand where either is NaN.
template <class V>
inline V at_least(V v, V bound) {
#if ARTSY_VECTOR_BYTES == 64
  if constexpr (sizeof(v[0]) == 4)
    return _mm512_max_ps(bound, v);
  else
    return _mm512_max_pd(bound, v);
#elif ARTSY_VECTOR_BYTES == 32
  if constexpr (sizeof(v[0]) == 4)
    return _mm256_max_ps(bound, v);
  else
    return _mm256_max_pd(bound, v);
#else
  return v < bound ? bound : v;
#endif
}

template <class V>
inline V at_most(V v, V bound) {
#if ARTSY_VECTOR_BYTES == 64
  if constexpr (sizeof(v[0]) == 4)
    return _mm512_min_ps(bound, v);
  else
    return _mm512_min_pd(bound, v);
#elif ARTSY_VECTOR_BYTES == 32
  if constexpr (sizeof(v[0]) == 4)
    return _mm256_min_ps(bound, v);
  else
    return _mm256_min_pd(bound, v);
#else
  return v > bound ? bound : v;
#endif
}

// a₀ b₀ a₁ b₁ … in two vectors.
template <class Real>
inline void riffle(Vector<Real> a, Vector<Real> b, Vector<Real>& low, Vector<Real>& high) {
  using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  typedef Index Indices __attribute__((vector_size(ARTSY_VECTOR_BYTES)));
  Indices first{}, second{};
  for (int k = 0; k < lanes<Real>; ++k) {
    first[k] = k / 2 + k % 2 * lanes<Real>;
    second[k] = first[k] + lanes<Real> / 2;
  }
#ifdef __clang__
  for (int k = 0; k < lanes<Real>; ++k) {
    low[k] = k % 2 ? b[k / 2] : a[k / 2];
    high[k] = k % 2 ? b[k / 2 + lanes<Real> / 2] : a[k / 2 + lanes<Real> / 2];
  }
#else
  low = __builtin_shuffle(a, b, first);
  high = __builtin_shuffle(a, b, second);
#endif
}

// Bit k is set where lane k is not 0.
template <class Real>
inline uint32_t nonzero_lanes(Vector<Real> v) {
#if ARTSY_VECTOR_BYTES == 64
  if constexpr (sizeof(Real) == 4)
    return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  else
    return _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ);
#else
  uint32_t bits = 0;
  for (int k = 0; k < lanes<Real>; ++k) bits |= uint32_t{v[k] != 0} << k;
  return bits;
#endif
}
