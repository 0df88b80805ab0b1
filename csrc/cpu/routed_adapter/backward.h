// The gradients: tile by tile those of the hidden values and of x, then, sub-network by sub-network, those of the
// weights. Included once per instruction set by kernels.h.

// For all rows, as the weights' gradients need them: the activated hidden values, and the gradients before activation.
template <class Number>
struct HiddenRows {
  Number *value, *gradient;  // null where not needed
};

// The second factor [K, N] from columns of a matrix whose rows are `stride` apart: as they lie where that can be.
template <class Stored>
Right<Real<Stored>> factor(const Stored* from, int64_t stride, int64_t K, int64_t N, Real<Stored>* memory) {
  if constexpr (std::is_same_v<Stored, Real<Stored>>)
    if (N % lanes<Stored> == 0) return in_place(from, stride);
  return packed(from, stride, K, N, memory);
}

// What one thread needs for the gradients of the rows.
template <class Stored>
class BackwardRows {
  using Number = Real<Stored>;
  static constexpr bool converts = !std::is_same_v<Number, Stored>;

 public:
  BackwardRows(const Problem<Stored>& problem, const Stored* grad, const Number* hidden, Stored* grad_x,
               HiddenRows<Number> rows)
      : p(problem),
        grad(grad),
        hidden(hidden),
        grad_x(grad_x),
        rows(rows),
        hidden_size(whole_vectors<Number>(p.R)),
        up_memory(packed_size<Number>(p.D, p.R)),
        down_memory(packed_size<Number>(p.R, p.D)),
        zeros(std::max(hidden_size, whole_vectors<Number>(p.D))),
        gradient(Tile::most * hidden_size),
        converted(converts ? Tile::most * kDepth : 0),
        rest(Tile::most * lanes<Number>) {
    std::fill_n(zeros.get(), std::max(hidden_size, whole_vectors<Number>(p.D)), Number(0));
  }

  void run(const Tile& tile) {
    const bool with_gradient = grad_x || rows.gradient;
    if (with_gradient) {
      if (tile.subnetwork != packed_subnetwork) pack(tile.subnetwork);
      multiply_rows<Number>(grad + tile.begin * p.D, tile.count, p.D, up, p.R, zeros.get(), converted.get(),
                            gradient.get());
    }
    const Number scale = static_cast<Number>(p.scale);
    for (int64_t i = 0; i < tile.count; ++i)
      for_vectors<Number>(p.R, [&](int64_t r, auto n) {
        const int64_t row = tile.begin + i;
        const auto [value, slope] = activated<Number>(p.activation, load_real(hidden + row * p.R + r, n));
        if (rows.value) store(rows.value + row * hidden_size + r, value);
        if (!with_gradient) return;
        const auto before = load(gradient.get() + i * hidden_size + r) * scale * slope;
        store(gradient.get() + i * hidden_size + r, before);
        if (rows.gradient) store(rows.gradient + row * hidden_size + r, before);
      });
    if (!grad_x) return;
    const Output<Stored> output(grad_x, p.rows(), p.D);
    const OutputRows<Stored> to{p.residual ? grad : nullptr, output, p.D, tile.begin, 1, rest.get()};
    multiply<Number>(tile.count, p.D, p.R, {gradient.get(), hidden_size, 1}, down, {zeros.get(), 0}, to,
                     next_rows(p, tile, grad));
    to.write_rest(tile.count);
  }

 private:
  void pack(int64_t s) {
    const int64_t weights = s * p.R * p.D;
    up = factor(p.up + weights, p.R, p.D, p.R, up_memory.get());
    if (grad_x) down = factor(p.down + weights, p.D, p.R, p.D, down_memory.get());
    packed_subnetwork = s;
  }

  const Problem<Stored>& p;
  const Stored* grad;
  const Number* hidden;
  Stored* grad_x;
  HiddenRows<Number> rows;
  int64_t hidden_size, packed_subnetwork = -1;
  Right<Number> up{}, down{};
  Scratch<Number> up_memory, down_memory, zeros, gradient, converted, rest;
};

// Rows that the sums of the weights' gradients pass over together: those of x and grad stay in the second cache.
constexpr int64_t kDeep = 96;

// What one thread needs for the gradients of the weights: sums over the rows of a sub-network, from the first to the
// last.
template <class Stored>
class BackwardWeights {
  using Number = Real<Stored>;

 public:
  BackwardWeights(const Problem<Stored>& problem, const Stored* grad, const Gradients<Stored>& out,
                  HiddenRows<Number> rows)
      : p(problem),
        grad(grad),
        out(out),
        rows(rows),
        hidden_size(whole_vectors<Number>(p.R)),
        most(whole_vectors<Number>(p.D)),
        converted(kDeep * most),
        down_sum(out.down ? p.R * most : 0),
        up_sum(out.up ? p.D * hidden_size : 0),
        bias_sum(std::max(hidden_size, most)) {}

  // `width` of the D columns of sub-network s, from `column` on.
  void run(int64_t s, int64_t column, int64_t width) {
    const int64_t stride = whole_vectors<Number>(width), end = p.begin(s + 1);
    clear(down_sum, out.down ? p.R * stride : 0);
    clear(up_sum, out.up ? width * hidden_size : 0);
    clear(bias_sum, stride);
    const Sums<Number> to_down{down_sum.get(), stride}, to_up{up_sum.get(), hidden_size};
    const bool up = out.up || out.up_bias;
    for (int64_t row = p.begin(s); row < end; row += kDeep) {
      const int64_t count = std::min(kDeep, end - row), after = std::min(kDeep, end - row - count);
      const auto ahead = [&](const Stored* from, int64_t first, int64_t rows) {
        return width == p.D ? Ahead(from + first * p.D, rows * p.D) : Ahead();
      };
      if (out.down) {
        const auto [x, step] = numbers(p.x + row * p.D + column, count, width);
        multiply<Number>(p.R, width, count, {rows.gradient + row * hidden_size, 1, hidden_size}, in_place(x, step),
                         {to_down.data, stride}, to_down,
                         up ? ahead(grad, row, count) : ahead(p.x, row + count, after));
      }
      if (!up) continue;
      const auto [g, step] = numbers(grad + row * p.D + column, count, width);
      if (out.up)
        multiply<Number>(width, p.R, count, {g, 1, step}, in_place(rows.value + row * hidden_size, hidden_size),
                         {to_up.data, hidden_size}, to_up, ahead(out.down ? p.x : grad, row + count, after));
      if (out.up_bias) add_rows(g, step, count, stride, bias_sum.get());
    }
    const Number scale = static_cast<Number>(p.scale);
    if (out.down)
      for (int64_t r = 0; r < p.R; ++r)
        copy_scaled(down_sum.get() + r * stride, width, Number(1), out.down + (s * p.R + r) * p.D + column);
    if (out.up)
      for (int64_t d = 0; d < width; ++d)
        copy_scaled(up_sum.get() + d * hidden_size, p.R, scale, out.up + (s * p.D + column + d) * p.R);
    if (out.up_bias) copy_scaled(bias_sum.get(), width, scale, out.up_bias + s * p.D + column);
  }

  void run_down_bias(int64_t s) {
    clear(bias_sum, hidden_size);
    add_rows(rows.gradient + p.begin(s) * hidden_size, hidden_size, p.begin(s + 1) - p.begin(s), hidden_size,
             bias_sum.get());
    copy_scaled(bias_sum.get(), p.R, Number(1), out.down_bias + s * p.R);
  }

 private:
  static void clear(const Scratch<Number>& sums, int64_t size) { std::fill_n(sums.get(), size, Number(0)); }

  // Rows of numbers, and how far they lie apart: in whole vectors.
  struct Rows {
    const Number* data;
    int64_t stride;
  };

  // From rows of x or grad: as they lie where that can be.
  Rows numbers(const Stored* from, int64_t count, int64_t width) const {
    if constexpr (std::is_same_v<Number, Stored>)
      if (width % lanes<Number> == 0) return {from, p.D};
    const int64_t stride = whole_vectors<Number>(width);
    for (int64_t k = 0; k < count; ++k) copy_vectors(from + k * p.D, width, converted.get() + k * stride);
    return {converted.get(), stride};
  }

  static void add_rows(const Number* from, int64_t stride, int64_t count, int64_t width, Number* to) {
    for (int64_t j = 0; j < width; j += lanes<Number>) {
      auto sum = load(to + j);
      for (int64_t k = 0; k < count; ++k) sum += load(from + k * stride + j);
      store(to + j, sum);
    }
  }

  static void copy_scaled(const Number* from, int64_t size, Number scale, Stored* to) {
    for_vectors<Number>(size, [&](int64_t i, auto n) { store_real(to + i, load(from + i) * scale, n); });
  }

  const Problem<Stored>& p;
  const Stored* grad;
  const Gradients<Stored>& out;
  HiddenRows<Number> rows;
  int64_t hidden_size, most;
  Scratch<Number> converted, down_sum, up_sum, bias_sum;
};

template <class Stored>
void backward(const Problem<Stored>& problem, const std::vector<Tile>& tiles, int64_t workers, const Stored* grad,
              const Real<Stored>* hidden, const Gradients<Stored>& out) {
  using Number = Real<Stored>;
  const int64_t hidden_numbers = problem.rows() * whole_vectors<Number>(problem.R);
  const bool with_gradient = out.down || out.down_bias;
  const Scratch<Number> value(out.up ? hidden_numbers : 0), gradient(with_gradient ? hidden_numbers : 0);
  const HiddenRows<Number> rows{out.up ? value.get() : nullptr, with_gradient ? gradient.get() : nullptr};
  if (out.x || out.up || with_gradient) {
    std::vector<BackwardRows<Stored>> states;
    for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem, grad, hidden, out.x, rows);
    for_each_range(static_cast<int64_t>(tiles.size()), workers, [&](int64_t worker, int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) states[worker].run(tiles[k]);
    });
  }
  if (!(out.up || out.up_bias || with_gradient)) return;
  std::vector<BackwardWeights<Stored>> states;
  for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem, grad, out, rows);
  const int64_t panels = (problem.D + kPanel<Number> - 1) / kPanel<Number>;
  const int64_t parts = workers == 1 ? std::min<int64_t>(panels, 1) : std::min(panels, 4 * workers);
  if (out.down || out.up || out.up_bias)
    for_each_task(problem.S * parts, workers, [&](int64_t worker, int64_t k) {
      const int64_t s = k / parts, part = k % parts;
      const int64_t begin = part * panels / parts * kPanel<Number>, end = (part + 1) * panels / parts * kPanel<Number>;
      states[worker].run(s, begin, std::min(end, problem.D) - begin);
    });
  if (out.down_bias)
    for_each_task(problem.S, workers, [&](int64_t worker, int64_t s) { states[worker].run_down_bias(s); });
}
