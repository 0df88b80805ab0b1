// Where both passes leave rows of D numbers. Included once per instruction set, after products.h.

// The rows of the next tile, of x or another tensor like it.
template <class Stored>
Ahead next_rows(const Problem<Stored>& p, const Tile& tile, const Stored* from) {
  const int64_t end = tile.begin + tile.count;
  return {from + end * p.D, std::min(Tile::most, p.rows() - end) * p.D};
}

// Takes the sums of a product straight from the registers: base + scale · sum.
template <class Stored>
struct OutputRows {
  using Number = Real<Stored>;
  using Whole = std::integral_constant<int64_t, lanes<Number>>;

  const Stored* base;  // or null
  const Output<Stored>& out;
  int64_t D, begin;
  Number scale;
  Number* rest;  // the last vector of each row, where D is not whole vectors: no call may interrupt a block of sums

  [[gnu::always_inline]] void write(int64_t i, int64_t j, Vector<Number> sum) const {
    if (j + lanes<Number> <= D)
      finish(i, j, sum, Whole());
    else
      store(rest + i * lanes<Number>, sum);
  }

  void write_rest(int64_t count) const {
    if (const int64_t n = D % lanes<Number>; n)
      for (int64_t i = 0; i < count; ++i) finish(i, D - n, load(rest + i * lanes<Number>), n);
  }

 private:
  template <class Count>
  [[gnu::always_inline]] void finish(int64_t i, int64_t j, Vector<Number> sum, Count n) const {
    const int64_t at = (begin + i) * D + j;
    const auto scaled = scale * sum;
    out.write(at, base ? load_real(base + at, n) + scaled : scaled, n);
  }
};
