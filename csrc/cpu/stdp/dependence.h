// f₊ and f₋ of the weights. No include guard: once per instruction set.

template <class Real>
inline Vector<Real> power(Vector<Real> base, double exponent) {
  if (exponent == 1) return base;
  if (exponent == 2) return base * base;
  if (exponent == 0) return broadcast(Real(1));
  for (int i = 0; i < lanes<Real>; ++i)
    base[i] = exponent == 0.5 ? std::sqrt(base[i]) : std::pow(base[i], Real(exponent));
  return base;
}

template <class Real>
struct Dependences {
  Vector<Real> plus, minus;
};

template <class Real>
inline Dependences<Real> dependences(Vector<Real> w, const Rule& rule) {
  const Vector<Real> zero{}, one = broadcast(Real(1));
  const Vector<Real> w_min = broadcast(Real(rule.w_min)), w_max = broadcast(Real(rule.w_max));
  switch (rule.dependence) {
    case Dependence::proportional:
      return {w, w};
    case Dependence::soft:
      return {power<Real>(at_least(w_max - w, zero), rule.exponent),
              power<Real>(at_least(w - w_min, zero), rule.exponent)};
    case Dependence::hard:
      return {w < w_max ? one : zero, w > w_min ? one : zero};
    default:
      return {one, one};
  }
}

template <class Real>
inline Vector<Real> clamped(Vector<Real> w, const Rule& rule) {
  return at_most(at_least(w, broadcast(Real(rule.w_min))), broadcast(Real(rule.w_max)));
}
