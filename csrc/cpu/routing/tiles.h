// Matrix products of pairs of bfloat16 in the tile registers of AMX. Included by products.h where they are there.

constexpr int64_t kTile = 16;  // rows of a tile, and numbers of 4 bytes in each

// What the tile registers hold: 0 to 3 sums, 4 and 5 the first factor, 6 and 7 the second. Laid out for LDTILECFG.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t row_count, int64_t columns) {
    rows[tile] = static_cast<uint8_t>(row_count);
    row_bytes[tile] = static_cast<uint16_t>(columns * 4);
  }
};

// A block of the sums, [32, 32] of which the lower rows and the right columns may be missing. depth divides K.
template <bool lower, bool right>
inline void multiply_tile_block(int64_t K, int64_t depth, const BFloat16Pair* a, int64_t row, const BFloat16Pair* b,
                                int64_t step, Sums<const float> start, Sums<float> to, Ahead& ahead) {
  const float* lower_start = start.data + kTile * start.stride;
  const int64_t start_bytes = start.stride * 4, row_bytes = row * 4, step_bytes = step * 4;
  _tile_loadd(0, start.data, start_bytes);
  if constexpr (right) _tile_loadd(1, start.data + kTile, start_bytes);
  if constexpr (lower) _tile_loadd(2, lower_start, start_bytes);
  if constexpr (lower && right) _tile_loadd(3, lower_start + kTile, start_bytes);
  for (int64_t k = 0; k < K; k += depth) {
    for (int64_t line = 0; line < depth && ahead.next < ahead.end; ++line, ahead.next += 64)
      __builtin_prefetch(ahead.next, 0, 2);
    _tile_loadd(4, a + k, row_bytes);
    _tile_loadd(6, b + k * step, step_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (right) {
      _tile_loadd(7, b + k * step + kTile, step_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (lower) {
      _tile_loadd(5, a + kTile * row + k, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (right) _tile_dpbf16ps(3, 5, 7);
    }
  }
  const int64_t to_bytes = to.stride * 4;
  _tile_stored(0, to.data, to_bytes);
  if constexpr (right) _tile_stored(1, to.data + kTile, to_bytes);
  if constexpr (lower) _tile_stored(2, to.data + kTile * to.stride, to_bytes);
  if constexpr (lower && right) _tile_stored(3, to.data + kTile * to.stride + kTile, to_bytes);
}

// As multiply; the elements of a row of the first factor are neighbours. The registers are released at the end, so that
// a call leaves nothing in its thread.
template <class To>
[[gnu::noinline]] void multiply_in_tiles(int64_t M, int64_t N, int64_t K, Left<BFloat16Pair> a, Right<BFloat16Pair> b,
                                         Sums<const float> start, const To& to, Ahead ahead) {
  int64_t depth = std::clamp<int64_t>(K, 1, kTile);  // all steps are of one depth: no tile is filled up
  while (depth > 1 && K % depth) --depth;
  alignas(64) float block[2 * kTile * 2 * kTile];
  const Sums<float> sums{block, 2 * kTile};
  for (int64_t i = 0; i < M; i += 2 * kTile) {
    const int64_t count = std::min(2 * kTile, M - i), upper_rows = std::min(kTile, count);
    TileShapes shapes;
    for (int tile = 0; tile < 6; ++tile) {
      const bool is_lower = tile == 2 || tile == 3 || tile == 5;
      const int64_t rows = is_lower ? count - upper_rows : upper_rows;
      if (rows) shapes.set(tile, rows, tile < 4 ? kTile : depth);
    }
    for (int tile = 6; tile < 8; ++tile) shapes.set(tile, depth, kTile);
    // The intrinsics do not say that they read memory.
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
    for (int64_t j = 0; j < N; j += 2 * kTile) {
      const BFloat16Pair* columns = b.data + j / kPanel<BFloat16Pair> * b.panel + j % kPanel<BFloat16Pair>;
      const Sums<const float> before{start.data + i * start.stride + j, start.stride};
      const bool right = N - j > kTile, lower = count > kTile;
      const auto run = [&](auto is_lower, auto is_right) {
        multiply_tile_block<is_lower, is_right>(K, depth, a.data + i * a.row, a.row, columns, b.step, before, sums,
                                                ahead);
      };
      using True = std::true_type;
      using False = std::false_type;
      if (lower)
        right ? run(True(), True()) : run(True(), False());
      else
        right ? run(False(), True()) : run(False(), False());
      for (int64_t row = 0; row < count; ++row)
        for (int64_t column = 0; column < (right ? 2 * kTile : kTile); column += lanes<float>)
          to.write(i + row, j + column, load(block + row * 2 * kTile + column));
    }
  }
  _tile_release();
}
