// The gradients: tile by tile those of the hidden values and of x, then, column by column, those of the weights.
// Included once per instruction set by kernels.h.

// For all rows, as the weights' gradients need them: the activated hidden values, and the gradients before activation.
template <class Number>
struct HiddenRows {
  Number *value, *gradient;  // null where not needed
};

// What one thread needs for the gradients of the rows.
template <class Stored>
class BackwardRows {
  using Number = Real<Stored>;
  static constexpr bool converts = !std::is_same_v<Number, Stored>;
  static constexpr int64_t panel = kPanel<Number>;

 public:
  BackwardRows(const Problem<Stored>& problem, const Stored* grad, Stored* grad_x, HiddenRows<Number> rows)
      : p(problem),
        grad(grad),
        grad_x(grad_x),
        rows(rows),
        hidden_size(whole_vectors<Number>(p.R)),
        down_memory(packed_size<Number>(p.D, p.R)),
        up_memory(packed_size<Number>(p.D, p.R)),
        down_rows_memory(packed_size<Number>(p.R, p.D)),
        down_bias(hidden_size),
        zeros(std::max(hidden_size, panel)),
        hidden(Tile::most * hidden_size),
        gradient(Tile::most * hidden_size),
        converted(converts ? Tile::most * kDepth : 0),
        sums(Tile::most * panel) {
    std::fill_n(zeros.data(), std::max(hidden_size, panel), Number(0));
  }

  void run(const Tile& tile) {
    if (tile.subnetwork != packed_subnetwork) pack(tile.subnetwork);
    multiply_rows<Number>(p.x + tile.begin * p.D, tile.count, p.D, down, p.R, down_bias.data(), converted.data(),
                          hidden.data());
    const bool with_gradient = grad_x || rows.gradient;
    if (with_gradient)
      multiply_rows<Number>(grad + tile.begin * p.D, tile.count, p.D, up, p.R, zeros.data(), converted.data(),
                            gradient.data());
    const Number scale = static_cast<Number>(p.scale);
    for (int64_t i = 0; i < tile.count * hidden_size; i += lanes<Number>) {
      const auto [value, slope] = activated<Number>(p.activation, load(hidden.data() + i));
      const int64_t at = tile.begin * hidden_size + i;
      if (rows.value) store(rows.value + at, value);
      if (!with_gradient) continue;
      const auto before = load(gradient.data() + i) * scale * slope;
      store(gradient.data() + i, before);
      if (rows.gradient) store(rows.gradient + at, before);
    }
    if (grad_x) write(tile, Output<Stored>(grad_x, p.rows(), p.D));
  }

 private:
  void pack(int64_t s) {
    const int64_t weights = s * p.R * p.D;
    down = packed_transpose(p.down + weights, p.R, p.D, down_memory.data());
    up = packed(p.up + weights, p.R, p.D, p.R, up_memory.data());
    if (grad_x) down_rows = packed(p.down + weights, p.D, p.R, p.D, down_rows_memory.data());
    copy_vectors(p.down_bias + s * p.R, p.R, down_bias.data());
    packed_subnetwork = s;
  }

  void write(const Tile& tile, const Output<Stored>& to) {
    for (int64_t column = 0; column < p.D; column += panel) {
      const int64_t width = std::min(panel, p.D - column);
      const Right<Number> weights{down_rows.data + column / panel * down_rows.panel, down_rows.panel, down_rows.step};
      multiply<Number>(tile.count, width, p.R, {gradient.data(), hidden_size, 1}, weights, {zeros.data(), 0},
                       {sums.data(), panel});
      for (int64_t i = 0; i < tile.count; ++i)
        for_vectors<Number>(width, [&](int64_t j, auto n) {
          to.write((tile.begin + i) * p.D + column + j, load(sums.data() + i * panel + j), n);
        });
    }
  }

  const Problem<Stored>& p;
  const Stored* grad;
  Stored* grad_x;
  HiddenRows<Number> rows;
  int64_t hidden_size, packed_subnetwork = -1;
  Right<Number> down{}, up{}, down_rows{};
  Scratch<Number> down_memory, up_memory, down_rows_memory, down_bias, zeros, hidden, gradient, converted, sums;
};

// What one thread needs for the gradients of the weights: sums over the rows of a sub-network, from the first to the
// last.
template <class Stored>
class BackwardWeights {
  using Number = Real<Stored>;
  static constexpr int64_t panel = kPanel<Number>;

 public:
  BackwardWeights(const Problem<Stored>& problem, const Stored* grad, const Gradients<Stored>& out,
                  HiddenRows<Number> rows)
      : p(problem),
        grad(grad),
        out(out),
        rows(rows),
        hidden_size(whole_vectors<Number>(p.R)),
        columns(kDepth * panel),
        down_sum(hidden_size * panel),
        up_sum(hidden_size * panel),
        bias_sum(std::max(hidden_size, panel)) {}

  // A panel of D columns of sub-network s.
  void run(int64_t s, int64_t column) {
    const int64_t width = std::min(panel, p.D - column), begin = p.begin(s), end = p.begin(s + 1);
    clear(down_sum, hidden_size * panel);
    clear(up_sum, hidden_size * panel);
    clear(bias_sum, panel);
    for (int64_t row = begin; row < end; row += kDepth) {
      const int64_t depth = std::min(kDepth, end - row);
      if (out.down) {
        const auto x = packed(p.x + row * p.D + column, p.D, depth, width, columns.data());
        multiply<Number>(p.R, width, depth, {rows.gradient + row * hidden_size, 1, hidden_size}, x,
                         {down_sum.data(), panel}, {down_sum.data(), panel});
      }
      if (!out.up && !out.up_bias) continue;
      const auto g = packed(grad + row * p.D + column, p.D, depth, width, columns.data());
      if (out.up)
        multiply<Number>(width, p.R, depth, {g.data, 1, panel}, {rows.value + row * hidden_size, panel, hidden_size},
                         {up_sum.data(), hidden_size}, {up_sum.data(), hidden_size});
      if (out.up_bias) add_rows(g.data, panel, depth, whole_vectors<Number>(width), bias_sum.data());
    }
    const Number scale = static_cast<Number>(p.scale);
    if (out.down)
      for (int64_t r = 0; r < p.R; ++r)
        copy_scaled(down_sum.data() + r * panel, width, Number(1), out.down + (s * p.R + r) * p.D + column);
    if (out.up)
      for (int64_t d = 0; d < width; ++d)
        copy_scaled(up_sum.data() + d * hidden_size, p.R, scale, out.up + (s * p.D + column + d) * p.R);
    if (out.up_bias) copy_scaled(bias_sum.data(), width, scale, out.up_bias + s * p.D + column);
  }

  void run_down_bias(int64_t s) {
    clear(bias_sum, hidden_size);
    add_rows(rows.gradient + p.begin(s) * hidden_size, hidden_size, p.begin(s + 1) - p.begin(s), hidden_size,
             bias_sum.data());
    copy_scaled(bias_sum.data(), p.R, Number(1), out.down_bias + s * p.R);
  }

 private:
  static void clear(const Scratch<Number>& sums, int64_t size) { std::fill_n(sums.data(), size, Number(0)); }

  static void add_rows(const Number* from, int64_t stride, int64_t count, int64_t width, Number* to) {
    for (int64_t k = 0; k < count; ++k)
      for (int64_t j = 0; j < width; j += lanes<Number>) store(to + j, load(to + j) + load(from + k * stride + j));
  }

  static void copy_scaled(const Number* from, int64_t size, Number scale, Stored* to) {
    for_vectors<Number>(size, [&](int64_t i, auto n) { store_real(to + i, load(from + i) * scale, n); });
  }

  const Problem<Stored>& p;
  const Stored* grad;
  const Gradients<Stored>& out;
  HiddenRows<Number> rows;
  int64_t hidden_size;
  Scratch<Number> columns, down_sum, up_sum, bias_sum;
};

template <class Stored>
void backward(const Problem<Stored>& problem, const std::vector<Tile>& tiles, int64_t workers, const Stored* grad,
              const Gradients<Stored>& out) {
  using Number = Real<Stored>;
  const int64_t hidden_numbers = problem.rows() * whole_vectors<Number>(problem.R);
  const bool with_gradient = out.down || out.down_bias;
  const Scratch<Number> value(out.up ? hidden_numbers : 0), gradient(with_gradient ? hidden_numbers : 0);
  const HiddenRows<Number> rows{out.up ? value.data() : nullptr, with_gradient ? gradient.data() : nullptr};
  if (out.x || out.up || with_gradient) {
    std::vector<BackwardRows<Stored>> states;
    for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem, grad, out.x, rows);
    for_each_range(static_cast<int64_t>(tiles.size()), workers, [&](int64_t worker, int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) states[worker].run(tiles[k]);
    });
  }
  if (!(out.up || out.up_bias || with_gradient)) return;
  std::vector<BackwardWeights<Stored>> states;
  for (int64_t worker = 0; worker < workers; ++worker) states.emplace_back(problem, grad, out, rows);
  const int64_t panels = (problem.D + kPanel<Number> - 1) / kPanel<Number>;
  if (out.down || out.up || out.up_bias)
    for_each_task(problem.S * panels, workers,
                  [&](int64_t worker, int64_t k) { states[worker].run(k / panels, k % panels * kPanel<Number>); });
  if (out.down_bias)
    for_each_task(problem.S, workers, [&](int64_t worker, int64_t s) { states[worker].run_down_bias(s); });
}
