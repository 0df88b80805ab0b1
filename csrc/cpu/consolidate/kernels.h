// consolidate for one instruction set; no include guard: each_isa.h includes it once for each.

template <class Real>
void consolidate(const Real* __restrict weight, const uint8_t* __restrict functional, int64_t count, Real on, Real off,
                 uint8_t* __restrict result) {
  for (int64_t k = 0; k < count; ++k) result[k] = std::abs(weight[k]) >= (functional[k] ? off : on);
}
