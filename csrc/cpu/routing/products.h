// Matrix products in blocks of sums that stay in registers. ARTSY_BFLOAT16_DOT and ARTSY_BFLOAT16_TILES say how pairs
// of bfloat16 can be multiplied. Included once per instruction set, after numbers.h.

// In what the products of elements are summed.
template <class Element>
using Sum = std::conditional_t<std::is_same_v<Element, BFloat16Pair>, float, Element>;

// A block is kRows rows of kVectors vectors: with kVectors of the second factor and one number of the first, that is
// what the registers hold (32 with AVX-512, else 16).
constexpr int kRows = 6;
constexpr int kVectors = ARTSY_VECTOR_BYTES == 64 ? 4 : 2;

// Columns of a block.
template <class Element>
constexpr int64_t kPanel = kVectors * lanes<Sum<Element>>;

// The first factor: element (i, k) is data[i · row + k · step].
template <class Element>
struct Left {
  const Element* data;
  int64_t row, step;
};

// The second factor, in panels of kPanel columns: row k of a panel begins at data[panel · number + k · step].
template <class Element>
struct Right {
  const Element* data;
  int64_t panel, step;
};

inline Vector<float> multiply_add(float a, Vector<float> b, Vector<float> sum) { return sum + a * b; }
inline Vector<double> multiply_add(double a, Vector<double> b, Vector<double> sum) { return sum + a * b; }
#if ARTSY_BFLOAT16_DOT
inline Vector<float> multiply_add(BFloat16Pair a, Vector<float> b, Vector<float> sum) {
  const __m512i pairs = _mm512_set1_epi32(std::bit_cast<int32_t>(a));
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(b));
}
#endif

// Sums of products: row i begins at data[i · stride]. Rows are whole vectors.
template <class Number>
struct Sums {
  Number* data;
  int64_t stride;

  template <class V>
  [[gnu::always_inline]] void write(int64_t i, int64_t j, V sum) const {
    store(data + i * stride + j, sum);
  }
};

// Memory that is read next: the products fetch a line of it into the second cache with each k.
struct Ahead {
  const char *next = nullptr, *end = nullptr;

  Ahead() = default;
  template <class Stored>
  Ahead(const Stored* from, int64_t size)
      : next(reinterpret_cast<const char*>(from)), end(reinterpret_cast<const char*>(from + size)) {}
};

// Calls call(constant) with the constant for value in 1 … most.
template <int most, class Call>
[[gnu::always_inline]] inline void with_constant(int64_t value, const Call& call) {
  if constexpr (most > 1)
    if (value < most) return with_constant<most - 1>(value, call);
  call(std::integral_constant<int, most>());
}

// Block (i, j) of the sums.
template <int M, int V, class Element, class To>
inline void multiply_block(int64_t i0, int64_t j0, int64_t K, Left<Element> a, const Element* b, int64_t step,
                           Sums<const Sum<Element>> start, const To& to, Ahead& ahead) {
  constexpr int64_t width = lanes<Sum<Element>>;
  const bool fetches = ahead.next < ahead.end;
  const char* fetched = fetches ? ahead.next : reinterpret_cast<const char*>(b);
  const int64_t line = fetches ? 64 : 0;
  ahead.next += K * line;
  Vector<Sum<Element>> sum[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) sum[i][j] = load(start.data + (i0 + i) * start.stride + j0 + j * width);
  for (int64_t k = 0; k < K; ++k) {
    __builtin_prefetch(fetched + k * line, 0, 2);
    Vector<Sum<Element>> row[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) std::memcpy(&row[j], b + k * step + j * width, sizeof(row[j]));
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const Element factor = a.data[(i0 + i) * a.row + k * a.step];
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) sum[i][j] = multiply_add(factor, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) to.write(i0 + i, j0 + j * width, sum[i][j]);
}

// As multiply, in blocks.
template <class Element, class To>
[[gnu::noinline]] void multiply_in_blocks(int64_t M, int64_t N, int64_t K, Left<Element> a, Right<Element> b,
                                          Sums<const Sum<Element>> start, const To& to, Ahead ahead) {
  constexpr int64_t width = lanes<Sum<Element>>;
  for (int64_t j = 0; j < N; j += kPanel<Element>) {
    const Element* panel = b.data + j / kPanel<Element> * b.panel;
    with_constant<kVectors>((N - j + width - 1) / width, [&](auto vectors) {
      for (int64_t i = 0; i < M; i += kRows)
        with_constant<kRows>(M - i, [&](auto count) {
          multiply_block<count, vectors, Element>(i, j, K, a, panel, b.step, start, to, ahead);
        });
    });
  }
}

#if ARTSY_BFLOAT16_TILES
#include "tiles.h"
#endif

// to = start + a [M, K] · b [K, N], added up from the first k to the last whatever the sizes are. Behind column N, up
// to whole vectors, the sums are of no meaning. to.write(i, j, v) takes each vector, from column j on, once.
template <class Element, class To>
inline void multiply(int64_t M, int64_t N, int64_t K, Left<Element> a, Right<Element> b, Sums<const Sum<Element>> start,
                     const To& to, Ahead ahead = {}) {
#if ARTSY_BFLOAT16_TILES
  if constexpr (std::is_same_v<Element, BFloat16Pair>)
    multiply_in_tiles(M, N, K, a, b, start, to, ahead);
  else
#endif
    multiply_in_blocks<Element>(M, N, K, a, b, start, to, ahead);
}

// One step of a transposition: exchanges blocks of `distance` lanes between two vectors.
template <int distance, bool second, class V, size_t... lane>
inline V exchanged(V a, V b, std::index_sequence<lane...>) {
  constexpr size_t size = sizeof...(lane);
  constexpr auto source = [](size_t l) {
    const bool from_b = l & distance;
    if (second) return from_b ? size + l : l + distance;
    return from_b ? size + l - distance : l;
  };
#ifdef __clang__
  return __builtin_shufflevector(a, b, source(lane)...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  typedef Index Indexes __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Indexes{static_cast<Index>(source(lane))...});
#endif
}

// Transposes a square of vectors.
template <class Number, int distance = lanes<Number> / 2>
[[gnu::always_inline]] inline void transpose(Vector<Number> (&v)[lanes<Number>]) {
  constexpr auto all = std::make_index_sequence<lanes<Number>>();
  for (int i = 0; i < lanes<Number>; ++i) {
    if (i & distance) continue;
    const auto a = v[i], b = v[i + distance];
    v[i] = exchanged<distance, false>(a, b, all);
    v[i + distance] = exchanged<distance, true>(a, b, all);
  }
  if constexpr (distance > 1) transpose<Number, distance / 2>(v);
}

// Numbers that a packed second factor [K, N] takes.
template <class Number>
constexpr int64_t packed_size(int64_t K, int64_t N) {
  return (N + kPanel<Number> - 1) / kPanel<Number> * kPanel<Number> * K;
}

// The second factor [K, N] from a matrix [N, K].
template <class Stored>
inline Right<Real<Stored>> packed_transpose(const Stored* from, int64_t N, int64_t K, Real<Stored>* to) {
  using Number = Real<Stored>;
  constexpr int64_t width = lanes<Number>, panel = kPanel<Number>;
  for (int64_t n = 0; n < N; n += width) {
    Number* column = to + n / panel * panel * K + n % panel;
    for (int64_t k = 0; k < K; k += width) {
      const int64_t columns = std::min(width, N - n), rows = std::min(width, K - k);
      Vector<Number> square[width];
      for (int i = 0; i < width; ++i) {
        if (i >= columns)
          square[i] = Vector<Number>{};
        else
          square[i] = rows == width ? load_real(from + (n + i) * K + k) : load_real(from + (n + i) * K + k, rows);
      }
      transpose<Number>(square);
      for (int i = 0; i < rows; ++i) store(column + (k + i) * panel, square[i]);
    }
  }
  return {to, panel * K, panel};
}

// The second factor [K, N] where it lies, in rows that are `stride` apart and are whole vectors.
template <class Number>
inline Right<Number> in_place(const Number* from, int64_t stride) {
  return {from, kPanel<Number>, stride};
}

// The second factor [K, N] from columns of a matrix whose rows are `stride` apart.
template <class Stored>
inline Right<Real<Stored>> packed(const Stored* from, int64_t stride, int64_t K, int64_t N, Real<Stored>* to) {
  constexpr int64_t panel = kPanel<Real<Stored>>;
  for (int64_t n = 0; n < N; n += panel) {
    Real<Stored>* row = to + n * K;
    for (int64_t k = 0; k < K; ++k, row += panel)
      for_vectors<Real<Stored>>(std::min(panel, N - n), [&](int64_t i, auto count) {
        const Stored* at = from + k * stride + n + i;
        __builtin_prefetch(at + 8 * stride);  // the rows lie too far apart for the processor to foresee the next
        store(row + i, load_real(at, count));
      });
  }
  return {to, panel * K, panel};
}
