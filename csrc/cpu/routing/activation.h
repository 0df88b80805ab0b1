// Activations and their slopes on vectors. Included once per instruction set, after simd.h.

// e^v; float to about one unit in the last place, without overflow or underflow.
inline Vector<float> exponential(Vector<float> v) {
  typedef int32_t Integers __attribute__((vector_size(ARTSY_VECTOR_BYTES)));
  v = v < -87.0f ? broadcast(-87.0f) : v;
  v = v > 88.0f ? broadcast(88.0f) : v;
  // v = n·ln 2 + r. Adding 1.5·2^23 rounds to an integer, which then stands in the low bits.
  const Vector<float> shifted = v * 1.44269504f + 0x1.8p23f;
  const Vector<float> n = shifted - 0x1.8p23f;
  const Vector<float> r = v - n * 0.693359375f + n * 2.12194440e-4f;
  Vector<float> p = broadcast(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + c;
  p = p * r * r + r + 1.0f;
  return p * (Vector<float>)(((Integers)shifted + (127 - 0x4b400000)) << 23);
}

inline Vector<double> exponential(Vector<double> v) {
  for (int i = 0; i < lanes<double>; ++i) v[i] = std::exp(v[i]);
  return v;
}

// The normal distribution up to v.
inline Vector<float> normal_distribution(Vector<float> v) {
  // Abramowitz and Stegun 7.1.26, for erfc(|v| / sqrt 2): error below 1.5e-7.
  const Vector<float> distance = v < 0.0f ? -v : v;
  const Vector<float> t = 1.0f / (distance * (0.3275911f * 0.70710678f) + 1.0f);
  Vector<float> p = broadcast(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
  const Vector<float> beyond = 0.5f * p * t * exponential(-0.5f * v * v);
  return v < 0.0f ? beyond : 1.0f - beyond;
}

inline Vector<double> normal_distribution(Vector<double> v) {
  for (int i = 0; i < lanes<double>; ++i) v[i] = 0.5 * std::erfc(-v[i] * 0.70710678118654752440);
  return v;
}

template <class V>
struct Activated {
  V value, slope;
};

template <class Number, class V = Vector<Number>>
inline Activated<V> activated(Activation activation, V v) {
  switch (activation) {
    case Activation::gelu: {
      const V cumulative = normal_distribution(v);
      const V density = Number(0.39894228040143267794) * exponential(Number(-0.5) * v * v);
      return {v * cumulative, cumulative + v * density};
    }
    case Activation::gelu_tanh: {
      // 1 + tanh(u) = 2 / (1 + e^(−2u))
      constexpr Number c = 0.044715, twice = 2 * 0.79788456080286535588;
      const V sigmoid = Number(1) / (Number(1) + exponential(-twice * (v + c * v * v * v)));
      return {v * sigmoid, sigmoid + v * sigmoid * (Number(1) - sigmoid) * twice * (Number(1) + 3 * c * v * v)};
    }
    default: {
      const V zero{};
      return {v < zero ? zero : v, v <= zero ? zero : broadcast(Number(1))};
    }
  }
}
