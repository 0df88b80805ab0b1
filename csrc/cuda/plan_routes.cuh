// plan_routes on a GPU: mask -> pairs sorted by sub-network (routes) and by sample (order), by counting.
//
// The mask [B, S] is cut into tiles of kRows samples by kColumns sub-networks. Every tile counts its pairs per
// sub-network and per sample (count); the counts are summed over the tiles above and to the left (scan) and over the
// sub-networks and samples before (offsets); so every pair knows its place in both orders, and is put there (scatter).
// Nothing is atomic: the same mask gives the same bits.
#pragma once

#include "port.cuh"

namespace artsy::cuda {

namespace plan {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 64, kRowsPerWarp = kRows / kWarps;
constexpr int kColumns = 128;  // four neighbouring sub-networks per lane, one byte each of a 32-bit word
constexpr int kScanItems = 4;  // numbers per thread and round in the scan of all totals
static_assert(kRows <= 255, "the counts of a tile are kept in bytes");

struct Mask {
  const uint8_t* data;
  int64_t B, S;
  bool in_words;  // rows can be read four bytes at a time

  // At least 1, and below 2^31 as the number of blocks is.
  __device__ __forceinline__ uint32_t tiles_across() const { return S > 0 ? uint32_t((S - 1) / kColumns + 1) : 1; }
};

__device__ __forceinline__ int byte_of(uint32_t word, int i) { return int(word >> (8 * i) & 0xffu); }

// What a thread has of its block's tile: the sub-networks s to s+3 of the samples b to b+kRowsPerWarp-1, which are
// those of its warp.
struct Tile {
  uint32_t down, across;
  int lane, warp;
  int64_t b, s;
  int rows, columns;  // how many of them are in the mask; one may be 0

  __device__ __forceinline__ explicit Tile(const Mask& mask)
      : down(blockIdx.x / mask.tiles_across()),
        across(blockIdx.x % mask.tiles_across()),
        lane(int(threadIdx.x) % 32),
        warp(int(threadIdx.x) / 32),
        b(int64_t(down) * kRows + int64_t(warp) * kRowsPerWarp),
        s(int64_t(across) * kColumns + int64_t(lane) * 4),
        rows(within(mask.B - b, kRowsPerWarp)),
        columns(within(mask.S - s, 4)) {}

  // words[sample][lane]: the four sub-networks as bytes, 0 or 1; what lies outside of the mask is 0. Returns their sum.
  // All loads of a thread are on their way before the first has come.
  __device__ __forceinline__ uint32_t read(const Mask& mask, uint32_t (&words)[kRows][32]) const {
    const uint8_t* next = mask.data + b * mask.S + s;
    uint32_t counts = 0;
    if (mask.in_words) {
#pragma unroll
      for (int row = 0; row < kRowsPerWarp; ++row, next += mask.S) {
        uint32_t bytes = 0;
        if (row < rows && columns > 0) bytes = *reinterpret_cast<const uint32_t*>(next);
        bytes |= bytes >> 4 & 0x0f0f0f0fu;  // a bool may be any byte but 0
        bytes |= bytes >> 2 & 0x03030303u;
        bytes |= bytes >> 1;
        counts += words[warp * kRowsPerWarp + row][lane] = bytes & 0x01010101u;
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < kRowsPerWarp; ++row, next += mask.S) {
        uint32_t bytes = 0;
        for (int i = 0; i < 4; ++i)
          if (row < rows && i < columns && next[i]) bytes |= 1u << (8 * i);
        counts += words[warp * kRowsPerWarp + row][lane] = bytes;
      }
    }
    return counts;
  }

 private:
  __device__ __forceinline__ static int within(int64_t left, int most) {
    return left < 0 ? 0 : left < most ? int(left) : most;
  }
};

}  // namespace plan

// column_counts[down, s] and row_counts[across, b]: the pairs of each tile by sub-network and by sample.
// Machine code: no global atomics, at most 32 registers
__global__ void __launch_bounds__(plan::kThreads)
    plan_routes_count_kernel(plan::Mask mask, int64_t* __restrict__ column_counts, int64_t* __restrict__ row_counts) {
  using namespace plan;
  ARTSY_SHARED(uint32_t, words, [kRows][32]);  // of the tile: each thread reads its own
  ARTSY_SHARED(uint32_t, of_warp, [kWarps][32]);
  const Tile tile(mask);
  of_warp[tile.warp][tile.lane] = tile.read(mask, words);
  for (int row = 0; row < kRowsPerWarp; ++row) {
    const uint32_t word = words[tile.warp * kRowsPerWarp + row][tile.lane];
    int in_row = 0;
    for (int i = 0; i < 4; ++i) in_row += __popc(__ballot_sync(0xffffffffu, byte_of(word, i)));
    if (tile.lane == 0 && row < tile.rows) row_counts[int64_t(tile.across) * mask.B + tile.b + row] = in_row;
  }
  __syncthreads();
  const int column = int(threadIdx.x);
  const int64_t s = int64_t(tile.across) * kColumns + column;
  if (column < kColumns && s < mask.S) {
    uint32_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += of_warp[warp][column / 4];
    column_counts[int64_t(tile.down) * mask.S + s] = byte_of(sum, column % 4);
  }
}

// Each of the `width` columns of counts [height, width] becomes the sum of the numbers above; totals take the whole.
// Two tables in one launch: the first blocks have the first one, the rest the second.
struct PlanTable {
  int64_t *counts, *totals;
  int64_t height, width;
};

// Machine code: no global atomics, at most 32 registers
__global__ void __launch_bounds__(plan::kThreads)
    plan_routes_scan_kernel(PlanTable first, PlanTable second, uint32_t blocks_of_first) {
  const bool is_first = blockIdx.x < blocks_of_first;
  const uint32_t block = is_first ? blockIdx.x : blockIdx.x - blocks_of_first;
  const int64_t column = int64_t(block) * plan::kThreads + threadIdx.x;
  const int64_t width = is_first ? first.width : second.width;
  if (column >= width) return;
  // Field by field: a reference to one of the two tables would put both into local memory.
  int64_t* next = (is_first ? first.counts : second.counts) + column;
  int64_t* const total = (is_first ? first.totals : second.totals) + column;
  int64_t rows_below = is_first ? first.height : second.height, sum = 0;
  constexpr int kAtOnce = 4;  // loads on their way while the sum waits
#pragma unroll 1
  for (; rows_below >= kAtOnce; rows_below -= kAtOnce) {
    int64_t counts[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) counts[k] = next[k * width];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      *next = sum;
      next += width;
      sum += counts[k];
    }
  }
#pragma unroll 1
  for (; rows_below > 0; --rows_below) {
    const int64_t count = *next;
    *next = sum;
    next += width;
    sum += count;
  }
  *total = sum;
}

// Block 0 makes offsets [S+1] of the totals that stand in offsets[1:], block 1 sample_offsets [B+1].
// Machine code: no global atomics, at most 32 registers
__global__ void __launch_bounds__(plan::kThreads)
    plan_routes_offsets_kernel(int64_t* __restrict__ offsets, int64_t S, int64_t* __restrict__ sample_offsets,
                               int64_t B, int64_t capacity, bool* __restrict__ overflow) {
  using namespace plan;
  ARTSY_SHARED(int64_t, of_warp, [kWarps]);
  int64_t* const numbers = blockIdx.x == 0 ? offsets : sample_offsets;
  const int64_t n = blockIdx.x == 0 ? S : B;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int64_t before = 0;  // the sum of all earlier rounds
  for (int64_t start = 1; start <= n; start += int64_t(kThreads) * kScanItems) {
    const int64_t mine = start + int64_t(threadIdx.x) * kScanItems;
    int64_t sum = 0;
    for (int k = 0; k < kScanItems; ++k)
      if (mine + k <= n) sum += numbers[mine + k];
    int64_t up_to_me = sum;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int64_t left = __shfl_up_sync(0xffffffffu, up_to_me, distance);
      if (lane >= distance) up_to_me += left;
    }
    if (lane == 31) of_warp[warp] = up_to_me;
    __syncthreads();
    int64_t all = 0, left = before + up_to_me - sum;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) left += of_warp[w];
      all += of_warp[w];
    }
    for (int k = 0; k < kScanItems; ++k)
      if (mine + k <= n) numbers[mine + k] = left += numbers[mine + k];
    before += all;
    __syncthreads();  // of_warp is read before the next round writes it
  }
  if (threadIdx.x == 0) {
    numbers[0] = 0;
    if (blockIdx.x == 0) *overflow = capacity >= 0 && before > capacity;
  }
}

// Puts every pair where it belongs. Pairs beyond the P there is room for are left out, and then order, which nobody may
// use, is no more than a list of valid indices.
// Machine code: no global atomics, at most 32 registers
__global__ void __launch_bounds__(plan::kThreads)
    plan_routes_scatter_kernel(plan::Mask mask, const int64_t* __restrict__ columns_above,
                               const int64_t* __restrict__ rows_left, const int64_t* __restrict__ offsets,
                               const int64_t* __restrict__ sample_offsets, int64_t P, int64_t* __restrict__ sample,
                               int64_t* __restrict__ subnetwork, int64_t* __restrict__ order) {
  using namespace plan;
  ARTSY_SHARED(uint32_t, words, [kRows][32]);  // of the tile: each thread reads its own
  ARTSY_SHARED(uint32_t, of_warp, [kWarps][32]);
  ARTSY_SHARED(int64_t, first_pair, [kColumns]);  // of each sub-network in this tile
  const int64_t used = offsets[mask.S];
  const bool fits = used <= P;
  const int64_t threads = int64_t(gridDim.x) * kThreads, me = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t p = (fits ? used : 0) + me; p < P; p += threads) {
    order[p] = p;
    if (p >= used) sample[p] = subnetwork[p] = 0;
  }

  const Tile tile(mask);  // where the mask is empty, so is the tile, and the padding remains
  of_warp[tile.warp][tile.lane] = tile.read(mask, words);
  const int64_t s = int64_t(tile.across) * kColumns + threadIdx.x;
  if (threadIdx.x < kColumns && s < mask.S && mask.B > 0)
    first_pair[threadIdx.x] = offsets[s] + columns_above[int64_t(tile.down) * mask.S + s];
  __syncthreads();

  uint32_t above = 0;  // pairs of my four sub-networks in the rows above, this tile's
  for (int warp = 0; warp < tile.warp; ++warp) above += of_warp[warp][tile.lane];
#pragma unroll 1
  for (int row = 0; row < kRowsPerWarp; ++row) {
    const int64_t b = tile.b + row;
    const uint32_t word = words[tile.warp * kRowsPerWarp + row][tile.lane];
    int left = 0;  // pairs of this sample in the lanes before me, this tile's
    for (int i = 0; i < 4; ++i) left += __popc(__ballot_sync(0xffffffffu, byte_of(word, i)) & ((1u << tile.lane) - 1));
    if (word) {
      int64_t k = sample_offsets[b] + rows_left[int64_t(tile.across) * mask.B + b] + left;
#pragma unroll 1
      for (uint32_t bytes = word; bytes != 0; bytes &= bytes - 1) {
        const int i = (__ffs(int(bytes)) - 1) / 8;
        const int64_t p = first_pair[tile.lane * 4 + i] + byte_of(above, i);
        if (p < P) {
          sample[p] = b;
          subnetwork[p] = tile.s + i;
        }
        if (fits) order[k++] = p;
      }
    }
    above += word;
  }
}

// --- What the launcher calls. All tensors are contiguous; every size may be 0.

// The int64 numbers of scratch space that both calls share.
inline int64_t plan_routes_scratch(int64_t B, int64_t S) {
  return ceil_div(B, plan::kRows) * S + ceil_div(S, plan::kColumns) * B;
}

namespace plan {

inline Mask mask_of(const uint8_t* data, int64_t B, int64_t S) {
  return {data, B, S, S % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 4 == 0};
}

inline int64_t tiles(int64_t B, int64_t S) { return ceil_div(B, kRows) * ceil_div(S, kColumns); }

}  // namespace plan

// offsets, sample_offsets and overflow; a negative capacity is none. Afterwards offsets[S] is the number of pairs.
inline void plan_routes_count(const uint8_t* mask, int64_t B, int64_t S, int64_t capacity, int64_t* scratch,
                              int64_t* offsets, int64_t* sample_offsets, bool* overflow, cudaStream_t stream) {
  using namespace plan;
  const PlanTable columns = {scratch, offsets + 1, ceil_div(B, kRows), S};
  const PlanTable rows = {scratch + columns.height * S, sample_offsets + 1, ceil_div(S, kColumns), B};
  if (tiles(B, S) > 0)
    ARTSY_LAUNCH(plan_routes_count_kernel, tiles(B, S), kThreads, 0, stream, mask_of(mask, B, S), columns.counts,
                 rows.counts);
  const int64_t blocks_of_columns = ceil_div(S, kThreads), blocks_of_rows = ceil_div(B, kThreads);
  if (blocks_of_columns + blocks_of_rows > 0)
    ARTSY_LAUNCH(plan_routes_scan_kernel, blocks_of_columns + blocks_of_rows, kThreads, 0, stream, columns, rows,
                 uint32_t(blocks_of_columns));
  ARTSY_LAUNCH(plan_routes_offsets_kernel, 2, kThreads, 0, stream, offsets, S, sample_offsets, B, capacity, overflow);
}

// sample, subnetwork and order, [P] each, after plan_routes_count with the same mask and scratch.
inline void plan_routes_scatter(const uint8_t* mask, int64_t B, int64_t S, const int64_t* scratch,
                                const int64_t* offsets, const int64_t* sample_offsets, int64_t P, int64_t* sample,
                                int64_t* subnetwork, int64_t* order, cudaStream_t stream) {
  using namespace plan;
  if (P == 0) return;
  ARTSY_LAUNCH(plan_routes_scatter_kernel, tiles(B, S) > 0 ? tiles(B, S) : 1, kThreads, 0, stream, mask_of(mask, B, S),
               scratch, scratch + ceil_div(B, kRows) * S, offsets, sample_offsets, P, sample, subnetwork, order);
}

}  // namespace artsy::cuda
