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

// f₊' and f₋'; 0 where a soft bound is reached.
template <class Real>
inline Dependences<Real> slopes(Vector<Real> w, const Rule& rule) {
  const Vector<Real> zero{}, one = broadcast(Real(1));
  if (rule.dependence == Dependence::proportional) return {one, one};
  if (rule.dependence != Dependence::soft || rule.exponent == 0) return {zero, zero};
  const Vector<Real> above = broadcast(Real(rule.w_max)) - w, below = w - broadcast(Real(rule.w_min));
  const Real exponent = Real(rule.exponent);
  return {above > zero ? -exponent * power<Real>(above, rule.exponent - 1) : zero,
          below > zero ? exponent * power<Real>(below, rule.exponent - 1) : zero};
}

template <class Real>
inline Vector<Real> clamped(Vector<Real> w, const Rule& rule) {
  return at_most(at_least(w, broadcast(Real(rule.w_min))), broadcast(Real(rule.w_max)));
}

// What passes back through the clamp: all inside the bounds, nothing at them or beyond.
template <class Real>
inline Vector<Real> passed(Vector<Real> gradient, Vector<Real> w, const Rule& rule) {
  const Vector<Real> zero{};
  gradient = w > broadcast(Real(rule.w_min)) ? gradient : zero;
  return w < broadcast(Real(rule.w_max)) ? gradient : zero;
}
