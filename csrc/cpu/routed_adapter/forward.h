// Tile by tile: hidden values, then the output from them. Included once per instruction set by kernels.h.

// What one thread needs for the forward pass.
template <class Element, class Stored>
class Forward {
  using Number = Sum<Element>;
  static constexpr bool pairs = std::is_same_v<Element, BFloat16Pair>;

 public:
  // saved: where the hidden values before activation go, [rows, R], or null.
  Forward(const Problem<Stored>& problem, Number* saved)
      : p(problem),
        saved(saved),
        hidden_size(whole_vectors<Number>(p.R)),
        down_memory(packed_size<Number>(p.D, p.R)),
        up_memory(packed_size<Number>(p.R, p.D)),
        down_bias(hidden_size),
        up_bias(whole_vectors<Number>(p.D)),
        hidden(Tile::most * hidden_size),
        converted(pairs || std::is_same_v<Element, Stored> ? 0 : Tile::most * kDepth),
        short_hidden(pairs ? Tile::most * hidden_size : 0),
        rest(Tile::most * lanes<Number>) {}

  void run(const Tile& tile, const Output<Stored>& y) {
    if (tile.subnetwork != packed_subnetwork) pack(tile.subnetwork);
    hide(tile);
    write(tile, y);
  }

 private:
  void pack(int64_t s) {
    const int64_t weights = s * p.R * p.D;
    down = packed_weights<Element>(p.down + weights, p.R, p.D, down_memory.get());
    up = packed_weights<Element>(p.up + weights, p.D, p.R, up_memory.get());
    copy_vectors(p.down_bias + s * p.R, p.R, down_bias.get());
    copy_vectors(p.up_bias + s * p.D, p.D, up_bias.get());
    packed_subnetwork = s;
  }

  // The activated hidden values of a tile.
  void hide(const Tile& tile) {
    multiply_rows<Element>(p.x + tile.begin * p.D, tile.count, p.D, down, p.R, down_bias.get(), converted.get(),
                           hidden.get());
    if (saved)
      for (int64_t i = 0; i < tile.count; ++i)
        for_vectors<Number>(p.R, [&](int64_t r, auto n) {
          store_real(saved + (tile.begin + i) * p.R + r, load(hidden.get() + i * hidden_size + r), n);
        });
    for (int64_t i = 0; i < tile.count * hidden_size; i += lanes<Number>) {
      const auto value = activated<Number>(p.activation, load(hidden.get() + i)).value;
      if constexpr (pairs)
        store_real(short_hidden.get() + i, value);
      else
        store(hidden.get() + i, value);
    }
  }

  void write(const Tile& tile, const Output<Stored>& y) {
    Left<Element> left{};
    if constexpr (pairs)
      left = {reinterpret_cast<const Element*>(short_hidden.get()), hidden_size / 2, 1};
    else
      left = {hidden.get(), hidden_size, 1};
    const OutputRows<Stored> to{p.base, y, p.D, tile.begin, static_cast<Number>(p.scale), rest.get()};
    multiply<Element>(tile.count, p.D, pairs ? p.R / 2 : p.R, left, up, {up_bias.get(), 0}, to,
                      next_rows(p, tile, p.x));
    to.write_rest(tile.count);
  }

  const Problem<Stored>& p;
  Number* saved;
  int64_t hidden_size, packed_subnetwork = -1;
  Right<Element> down{}, up{};
  Scratch<Number> down_memory, up_memory, down_bias, up_bias, hidden, converted;
  Scratch<Stored> short_hidden;
  Scratch<Number> rest;
};

template <class Element, class Stored>
void forward_in(const Problem<Stored>& problem, const std::vector<Tile>& tiles, int64_t workers, Stored* y,
                Real<Stored>* saved) {
  const Output<Stored> output(y, problem.rows(), problem.D);
  std::vector<Forward<Element, Stored>> states;
  for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem, saved);
  for_each_range(static_cast<int64_t>(tiles.size()), workers, [&](int64_t worker, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) states[worker].run(tiles[k], output);
  });
}

template <class Stored>
void forward(const Problem<Stored>& problem, const std::vector<Tile>& tiles, int64_t workers, Stored* y,
             Real<Stored>* saved) {
#if ARTSY_BFLOAT16_DOT || ARTSY_BFLOAT16_TILES
  if constexpr (std::is_same_v<Stored, BFloat16>)
    if (problem.D % 2 == 0 && problem.R % 2 == 0) return forward_in<BFloat16Pair>(problem, tiles, workers, y, saved);
#endif
  forward_in<Real<Stored>>(problem, tiles, workers, y, saved);
}
