// Rows of a matrix as they lie in memory, whatever their type, times packed weights. Included once per instruction set,
// after products.h.

// How many columns of the rows meet the second factor at a time: that part of it stays in the second cache.
constexpr int64_t kDepth = 256;

// rows [count, K] · factor [K, N] + start, into `to`, whose rows are whole vectors. Rows of other numbers than those
// that are multiplied go through `converted`.
template <class Element, class Stored>
inline void multiply_rows(const Stored* rows, int64_t count, int64_t K, Right<Element> factor, int64_t N,
                          const Sum<Element>* start, Sum<Element>* converted, Sum<Element>* to) {
  constexpr int64_t unit = std::is_same_v<Element, BFloat16Pair> ? 2 : 1;
  const int64_t stride = whole_vectors<Sum<Element>>(N);
  Sums<const Sum<Element>> before{start, 0};
  int64_t k = 0;
  do {
    const int64_t depth = std::min(kDepth, K - k);
    Left<Element> left{};
    if constexpr (std::is_same_v<Element, Stored>) {
      left = {rows + k, K, 1};
    } else if constexpr (unit == 2) {
      left = {reinterpret_cast<const Element*>(rows + k), K / 2, 1};
    } else {
      for (int64_t i = 0; i < count; ++i) copy_vectors(rows + i * K + k, depth, converted + i * kDepth);
      left = {converted, kDepth, 1};
    }
    const Right<Element> right{factor.data + k / unit * factor.step, factor.panel, factor.step};
    multiply<Element>(count, N, depth / unit, left, right, before, Sums<Sum<Element>>{to, stride});
    before = {to, stride};
  } while ((k += kDepth) < K);
}

// The second factor [K, N] of such products from a weight matrix [N, K].
template <class Element, class Stored>
inline Right<Element> packed_weights(const Stored* from, int64_t N, int64_t K, Sum<Element>* to) {
  if constexpr (std::is_same_v<Element, BFloat16Pair>) {  // as they lie side by side they are multiplied
    const Right<float> right = packed_transpose(reinterpret_cast<const float*>(from), N, K / 2, to);
    return {reinterpret_cast<const Element*>(right.data), right.panel, right.step};
  } else {
    return packed_transpose(from, N, K, to);
  }
}
