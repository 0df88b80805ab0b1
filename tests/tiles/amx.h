// AMX in software, as Intel's manual describes it (volume 2, TDPBF16PS): a program that this is included in runs the
// kernels for tiles on any processor. What a processor refuses ends the program.
#pragma once

// GCC 12 takes the registers that its own header leaves undefined on purpose for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_in_software {

struct Tile {
  int rows = 0, row_bytes = 0;
  uint8_t bytes[16][64] = {};
};

inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "AMX refuses: %s\n", what);
  std::abort();
}

inline Tile& tile(int number) {
  require(configured, "no configuration is loaded");
  require(tiles[number].rows > 0, "the tile is not configured");
  return tiles[number];
}

inline void load_configuration(const void* from) {
  uint8_t raw[64];
  std::memcpy(raw, from, sizeof(raw));
  require(raw[0] == 1 && raw[1] == 0, "the palette must be 1 and the start row 0");
  for (int i = 2; i < 16; ++i) require(raw[i] == 0, "reserved bytes must be 0");
  for (int number = 0; number < 16; ++number) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, raw + 16 + 2 * number, sizeof(row_bytes));
    const int rows = raw[48 + number];
    require(rows <= 16 && row_bytes <= 64, "a tile has at most 16 rows of 64 bytes");
    require((rows == 0) == (row_bytes == 0), "a tile without rows has no columns either");
    require(number < 8 || rows == 0, "there are 8 tiles");
    if (number < 8) tiles[number] = {rows, row_bytes};
  }
  configured = true;
}

inline void release() { configured = false; }

inline void load(int number, const void* from, int64_t stride) {
  Tile& to = tile(number);
  std::memset(to.bytes, 0, sizeof(to.bytes));
  for (int row = 0; row < to.rows; ++row)
    std::memcpy(to.bytes[row], static_cast<const uint8_t*>(from) + row * stride, static_cast<size_t>(to.row_bytes));
}

inline void store(int number, void* to, int64_t stride) {
  const Tile& from = tile(number);
  for (int row = 0; row < from.rows; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, from.bytes[row], static_cast<size_t>(from.row_bytes));
}

inline float number(const Tile& from, int row, int at) {  // of bfloat16; subnormal ones count as 0
  uint16_t bits;
  std::memcpy(&bits, from.bytes[row] + 2 * at, sizeof(bits));
  const uint32_t word = (bits & 0x7f80) == 0 ? 0 : uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

inline void multiply(int sums, int first, int second) {
  Tile& c = tile(sums);
  const Tile &a = tile(first), &b = tile(second);
  require(sums != first && sums != second && first != second, "three different tiles");
  require(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows, "the tiles must fit");
  for (int m = 0; m < c.rows; ++m)
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < b.rows; ++k) {
        even = std::fma(number(a, m, 2 * k), number(b, k, 2 * n), even);
        odd = std::fma(number(a, m, 2 * k + 1), number(b, k, 2 * n + 1), odd);
      }
      std::memcpy(&sum, c.bytes[m] + 4 * n, sizeof(sum));
      sum += even + odd;
      std::memcpy(c.bytes[m] + 4 * n, &sum, sizeof(sum));
    }
}

}  // namespace amx_in_software

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig ::amx_in_software::load_configuration
#define _tile_release ::amx_in_software::release
#define _tile_loadd ::amx_in_software::load
#define _tile_stored ::amx_in_software::store
#define _tile_dpbf16ps ::amx_in_software::multiply
