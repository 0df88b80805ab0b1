// stdp on a GPU.
//
// Both sides are followed through time first: what a step reads of each trace, and what each spike counts (follow).
//
// Rules that are frozen for the call, in fp32, sum over time. Depression is a product with the post-synaptic spikes,
// too: a post-synaptic spike meets the later pre-synaptic spikes, so these are summed backwards (later). Over the rows
// k = (t, b), with given traces as a step before the first,
//
//     W ← kept · W + Σ_parts f(W) · amplitude · Σ_k post[k, j] · Z[k, i]
//
// in one part where f is 1 and all sub-networks share their amplitudes, else potentiation and depression apart. Z
// becomes two planes of fp16 (split), high and low, 22 bits together; spikes are 0 or 1, or two planes as well; and the
// products run on tensor cores (product). Sums over ranges of k are added in order (update).
//
// All other rules, and fp64, take the steps one after the other with a tile of W in registers (step), or synapse by
// synapse where each keeps an eligibility trace (eligible).
#pragma once

#include "../cpu/stdp/problem.h"
#include "consolidate.cuh"
#include "numbers.cuh"
#include "ptx.cuh"

namespace artsy::cuda {

namespace plasticity {

using artsy::stdp::Clamp;
using artsy::stdp::Dependence;
using artsy::stdp::Problem;
using artsy::stdp::Rule;

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 4096;  // of the kernels that take several items per thread
constexpr int64_t kPad = 16;          // rows in scratch memory are multiples of so many numbers

// --- Four neighbouring numbers of a row. Its end may be nearer; a row of ours goes on with zeros.

template <class T>
using Four = Pack<T, 4>;

template <class T>
__device__ __forceinline__ Four<T> read_four(const T* from, int64_t left, bool in_packs) {
  if (in_packs && left >= 4) return load<T, 4>(from);
  Four<T> four = {};
#pragma unroll
  for (int n = 0; n < 4; ++n)
    if (n < left) four.number[n] = from[n];
  return four;
}

template <class T>
__device__ __forceinline__ void write_four(T* to, const Four<T>& four, int64_t left, bool in_packs) {
  if (in_packs && left >= 4) {
    store(to, four);
    return;
  }
#pragma unroll
  for (int n = 0; n < 4; ++n)
    if (n < left) to[n] = four.number[n];
}

// The largest magnitude of a block, of the finite ones.
__device__ __forceinline__ void note_peak(float& peak, float value) {
  const float magnitude = value < 0 ? -value : value;
  if (magnitude > peak && magnitude < INFINITY) peak = magnitude;
}

__device__ __forceinline__ float peak_of_block(float peak, float (&of_warp)[kThreads / 32]) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) peak = max(peak, __shfl_xor_sync(0xffffffffu, peak, distance));
  __syncthreads();  // the last use is over
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = peak;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) peak = max(peak, of_warp[warp]);
  return peak;
}

// --- What the weights see

// m[t, b, s]: share of the batch, what the decay leaves of it, modulation, mask; what is absent counts 1.
template <class Real>
struct Factor {
  const Real* power;       // [T]
  const Real* modulation;  // [T, B] or, if own, [T, B, S]
  const uint8_t* mask;     // [B, S]
  bool own;
  Real share;
  int64_t B, S;

  __device__ __forceinline__ Real at(int64_t t, int64_t b, int64_t s) const {
    Real m = share;
    if (power) m *= power[t];
    if (modulation) m *= modulation[own ? (t * B + b) * S + s : t * B + b];
    return mask && !mask[b * S + s] ? Real(0) : m;
  }
};

__device__ __forceinline__ float general_power(float base, float exponent) { return exp2f(exponent * log2f(base)); }
__device__ __forceinline__ double general_power(double base, double exponent) { return pow(base, exponent); }

// f₊ and f₋ of a weight, and its bounds.
template <class Real>
struct Bounds {
  Dependence dependence;
  Real exponent, w_min, w_max;

  explicit Bounds(const Rule& rule)
      : dependence(rule.dependence), exponent(Real(rule.exponent)), w_min(Real(rule.w_min)), w_max(Real(rule.w_max)) {}

  __device__ __forceinline__ Real power(Real distance) const {
    const Real base = distance < 0 ? Real(0) : distance;
    if (exponent == 1) return base;
    if (exponent == 2) return base * base;
    return exponent == 0 ? Real(1) : general_power(base, exponent);
  }
  __device__ __forceinline__ Real plus(Real w) const {
    if (dependence == Dependence::none) return 1;
    if (dependence == Dependence::proportional) return w;
    return dependence == Dependence::soft ? power(w_max - w) : Real(w < w_max);
  }
  __device__ __forceinline__ Real minus(Real w) const {
    if (dependence == Dependence::none) return 1;
    if (dependence == Dependence::proportional) return w;
    return dependence == Dependence::soft ? power(w - w_min) : Real(w > w_min);
  }
  __device__ __forceinline__ Real clamped(Real w) const { return w < w_min ? w_min : w > w_max ? w_max : w; }
};

// The state of synapses after their weights are final; absent where nobody asks.
template <class Real>
struct Consolidation {
  const uint8_t* before;
  uint8_t* after;
  Real on, off;

  __device__ __forceinline__ void write(int64_t at, Real weight) const {
    if (after) after[at] = consolidation::transmits(weight, before[at], on, off);
  }
};

// --- Both sides

// The neurons of one side: spikes [T, B, P, N], or [T, B, N] that P sub-networks share.
template <class Real>
struct Side {
  int64_t T, B, P, N, stride;  // stride: N with padding, of the rows that are written
  bool own, binary, in_packs;
  bool nearest, slow;
  enum class Reads { after, before, added } reads;  // of the trace: with this step's spike, without it, or what it adds
  Real decay, gain, target, slow_decay, slow_amplitude;
  const Real* amplitude;  // [P], or nullptr for 1
  Factor<Real> factor;
  const Real *given, *given_slow;             // traces before the first step, or nullptr for 0
  Real *trace, *trace_slow;                   // and after the last one, or nullptr
  Real *start, *read, *counts, *slow_counts;  // [B, P, stride]; [T, B, P, stride] each; or nullptr
  uint8_t* marks;                             // [T, B, P, stride], or nullptr
  float *peak_of_read, *peak_of_counts;       // by block, or nullptr
};

// start: m · the given trace. read: m · (what the step reads of the trace − target). counts: m · spike · amplitude;
// slow_counts: m · spike · the slow trace's part of the amplitude, which is in counts where nobody asks for it. marks:
// whether there is a spike that counts.
// Machine code: 128-bit loads, 128-bit stores, no global atomics
template <class Real, class Spike>
__global__ void __launch_bounds__(kThreads) stdp_follow_kernel(const Spike* __restrict__ spikes, Side<Real> side) {
  ARTSY_SHARED(float, of_warp, [kThreads / 32]);
  float peak_of_read = 0, peak_of_counts = 0;
  const int64_t groups = side.stride / 4, items = side.B * side.P * groups;
  const int64_t sources = side.own ? side.P : 1;
  for (int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += int64_t(gridDim.x) * kThreads) {
    const int64_t n = item % groups * 4, p = item / groups % side.P, b = item / groups / side.P, left = side.N - n;
    const int64_t source = (b * sources + (side.own ? p : 0)) * side.N + n, to = (b * side.P + p) * side.stride + n;
    const Real amplitude = side.amplitude ? side.amplitude[p] : Real(1);
    Four<Real> x = {}, x_slow = {};
    if (side.given) x = read_four(side.given + source, left, side.in_packs);
    if (side.given_slow) x_slow = read_four(side.given_slow + source, left, side.in_packs);
    if (side.start) {
      const Real m = side.factor.at(0, b, p);
      Four<Real> start;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        start.number[k] = m * x.number[k];
        note_peak(peak_of_read, float(start.number[k]));
        note_peak(peak_of_counts, float(start.number[k]));
      }
      store(side.start + to, start);
    }
    const auto fired_at = [&](int64_t t) {
      return t < side.T ? read_four(spikes + t * side.B * sources * side.N + source, left, side.in_packs)
                        : Four<Spike>{};
    };
    Four<Spike> next = fired_at(0), after_next = fired_at(1);  // on their way while a step is computed
#pragma unroll 1
    for (int64_t t = 0; t < side.T; ++t) {
      const Four<Spike> fired = next;
      next = after_next;
      after_next = fired_at(t + 2);
      const Real m = side.factor.at(t, b, p);
      Four<Real> read, counts, slow_counts;
      Four<uint8_t> marks;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Real spike = side.binary ? Real(fired.number[k] != 0) : Real(fired.number[k]);
        const Real decayed = side.decay * x.number[k];
        const Real added = !side.nearest ? side.gain * spike : spike != 0 ? side.gain - decayed : Real(0);
        x.number[k] = side.nearest && spike != 0 ? side.gain : decayed + added;
        const Real reads = side.reads == Side<Real>::Reads::added    ? added
                           : side.reads == Side<Real>::Reads::before ? decayed
                                                                     : x.number[k];
        read.number[k] = k < left ? m * (reads - side.target) : Real(0);
        Real more = 0;
        if (side.slow) {
          const Real decayed_slow = side.slow_decay * x_slow.number[k];
          more = side.slow_amplitude * decayed_slow;
          x_slow.number[k] = side.nearest && spike != 0 ? side.gain : decayed_slow + (side.nearest ? 0 : added);
        }
        counts.number[k] = m * spike * (side.slow_counts ? amplitude : amplitude + more);
        slow_counts.number[k] = m * spike * more;
        marks.number[k] = m != 0 && spike != 0;
        note_peak(peak_of_read, float(read.number[k]));
        note_peak(peak_of_counts, float(counts.number[k]));
      }
      const int64_t at = t * side.B * side.P * side.stride + to;
      if (side.read) store(side.read + at, read);
      if (side.counts) store(side.counts + at, counts);
      if (side.slow_counts) store(side.slow_counts + at, slow_counts);
      if (side.marks) store(side.marks + at, marks);
    }
    if (p == 0 || side.own) {
      if (side.trace) write_four(side.trace + source, x, left, side.in_packs);
      if (side.trace_slow) write_four(side.trace_slow + source, x_slow, left, side.in_packs);
    }
  }
  if (side.peak_of_read) {
    const float peak = peak_of_block(peak_of_read, of_warp);
    if (threadIdx.x == 0) side.peak_of_read[blockIdx.x] = peak;
  }
  if (side.peak_of_counts) {
    const float peak = peak_of_block(peak_of_counts, of_warp);
    if (threadIdx.x == 0) side.peak_of_counts[blockIdx.x] = peak;
  }
}

// --- Rules that are frozen for the call: summed over time

// power[t] = share · keep^(T−1−t): what the decay of the weights leaves of the change of step t.
// Machine code: no global atomics
__global__ void __launch_bounds__(kThreads) stdp_power_kernel(int64_t T, double keep, double share, float* power) {
  const int64_t t = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (t < T) power[t] = float(share * pow(keep, double(T - 1 - t)));
}

// Whether potentiation and depression are one part: never, always, or if all sub-networks have the same amplitudes,
// which the device alone knows.
enum class OnePart { never, always, if_uniform };

struct Amplitudes {
  const float *plus, *minus;  // [S]
  int64_t S;
  OnePart one_part;

  // All threads of the block ask at once.
  __device__ __forceinline__ bool are_in_one_part() const {
    if (one_part != OnePart::if_uniform) return one_part == OnePart::always;
    int same = 1;
    for (int64_t s = threadIdx.x; s < S; s += kThreads) same &= int(plus[s] == plus[0] && minus[s] == minus[0]);
    return __syncthreads_and(same) != 0;
  }
};

// Arrays [T, B, P, stride] of the pre-synaptic side. Where post-synaptic traces are given, a step before the first.
struct Later {
  float *x, *minus, *slow;  // slow: or nullptr
  int64_t T, B, P, stride;
  float decay, gain;
  bool exclusive, starts;
  Amplitudes amplitudes;
  float *peak_of_x, *peak_of_minus, *peak_of_slow;
};

// minus (and slow): what each spike counts -> minus the decayed sums over later steps, what a post-synaptic spike now
// means for depression. In one part, x takes everything and minus is left alone.
// Machine code: 128-bit loads, 128-bit stores, no global atomics
__global__ void __launch_bounds__(kThreads) stdp_later_kernel(Later later) {
  ARTSY_SHARED(float, of_warp, [kThreads / 32]);
  const bool in_one_part = later.amplitudes.are_in_one_part();
  const int64_t groups = later.stride / 4, items = later.B * later.P * groups;
  const int64_t step = later.B * later.P * later.stride;
  float peak_of_x = 0, peak_of_minus = 0, peak_of_slow = 0;
  for (int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += int64_t(gridDim.x) * kThreads) {
    const int64_t s = item / groups % later.P;
    const float a_plus = in_one_part ? later.amplitudes.plus[s] : 1,
                a_minus = in_one_part ? later.amplitudes.minus[s] : 1;
    Four<float> sum = {}, slow_sum = {};
    int64_t at = (later.T - 1) * step + item * 4;
#pragma unroll 2
    for (int64_t t = later.T - 1; t >= 0; --t, at -= step) {
      const Four<float> counts = load<float, 4>(later.minus + at);
      Four<float> x = load<float, 4>(later.x + at), depression;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float decayed = later.decay * sum.number[k];
        sum.number[k] = decayed + counts.number[k];
        depression.number[k] = -a_minus * later.gain * (later.exclusive ? decayed : sum.number[k]);
        if (in_one_part) x.number[k] = a_plus * x.number[k] + depression.number[k];
        note_peak(peak_of_x, x.number[k]);
        note_peak(peak_of_minus, depression.number[k]);
      }
      if (in_one_part)
        store(later.x + at, x);
      else
        store(later.minus + at, depression);
      if (later.slow) {
        Four<float> slow = load<float, 4>(later.slow + at);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float decayed = later.decay * slow_sum.number[k];
          slow_sum.number[k] = decayed + slow.number[k];
          slow.number[k] = -later.gain * (later.exclusive ? decayed : slow_sum.number[k]);
          note_peak(peak_of_slow, slow.number[k]);
        }
        store(later.slow + at, slow);
      }
    }
    if (later.starts) {  // at is now the row before the first step
      Four<float> start, slow_start;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        start.number[k] = -a_minus * later.decay * sum.number[k];
        slow_start.number[k] = -later.decay * slow_sum.number[k];
        note_peak(peak_of_x, start.number[k]);
        note_peak(peak_of_minus, start.number[k]);
        note_peak(peak_of_slow, slow_start.number[k]);
      }
      store(later.x + at, in_one_part ? start : Four<float>{});
      store(later.minus + at, start);
      if (later.slow) store(later.slow + at, slow_start);
    }
  }
  peak_of_x = peak_of_block(peak_of_x, of_warp);
  peak_of_minus = peak_of_block(peak_of_minus, of_warp);
  peak_of_slow = peak_of_block(peak_of_slow, of_warp);
  if (threadIdx.x == 0) {
    later.peak_of_x[blockIdx.x] = peak_of_x;
    later.peak_of_minus[blockIdx.x] = peak_of_minus;
    if (later.slow) later.peak_of_slow[blockIdx.x] = peak_of_slow;
  }
}

// Every eight numbers become, in place, eight of fp16 and eight more of what is missing to them, times a power of two
// by which the largest of all is near 2^14; unit: one over it. An array that is not needed in one part is left alone.
// Machine code: 128-bit loads, 128-bit stores, no global atomics
__global__ void __launch_bounds__(kThreads)
    stdp_split_kernel(float* rows, int64_t groups, const float* __restrict__ peaks, int64_t count, float* unit,
                      Amplitudes needed) {
  ARTSY_SHARED(float, of_warp, [kThreads / 32]);
  if (needed.are_in_one_part()) return;  // the whole block does
  float peak = 0;
  for (int64_t k = threadIdx.x; k < count; k += kThreads) peak = max(peak, peaks[k]);
  peak = peak_of_block(peak, of_warp);
  const int exponent = peak > 0 ? max(int(__float_as_uint(peak) >> 23) - 127, -100) : 0;
  const float scale = __uint_as_float(unsigned(127 + 14 - exponent) << 23);
  if (blockIdx.x == 0 && threadIdx.x == 0) *unit = __uint_as_float(unsigned(127 - 14 + exponent) << 23);
  for (int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x; group < groups;
       group += int64_t(gridDim.x) * kThreads) {
    float* const at = rows + group * 8;
    const Four<float> four[2] = {load<float, 4>(at), load<float, 4>(at + 4)};
    Pack<__half, 8> high, low;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float number = scale * four[k / 4].number[k % 4];
      high.number[k] = __float2half_rn(number);
      low.number[k] = __float2half_rn(number - __half2float(high.number[k]));
    }
    store(reinterpret_cast<__half*>(at), high);
    store(reinterpret_cast<__half*>(at + 4), low);
  }
}

// What a part's sums do to the weights [S, J, I].
struct Update {
  const float* weight;
  float* result;  // may be the weights themselves where f is 1
  int64_t S, J, I;
  bool in_packs;
  enum class Kind { plus, minus } kind;  // which f and, on the device, whether the part is there
  const float* amplitude;                // [S], or nullptr for 1
  Amplitudes amplitudes;
  bool first, last, clamps;
  float kept;  // of the first weight
  Bounds<float> bounds;
  Consolidation<float> consolidation;

  // Four synapses from `at` on, in one row of sub-network s, with `left` to its end.
  __device__ __forceinline__ void apply(int64_t s, int64_t at, int64_t left, const Four<float>& sum,
                                        bool in_one_part) const {
    const float a = amplitude && !in_one_part ? amplitude[s] : 1;
    const bool ends = last || in_one_part;
    const Four<float> before =
        first || bounds.dependence != Dependence::none ? read_four(weight + at, left, in_packs) : Four<float>{};
    Four<float> w = first ? before : read_four(result + at, left, in_packs);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float f = kind == Kind::plus ? bounds.plus(before.number[k]) : bounds.minus(before.number[k]);
      w.number[k] = (first ? kept : 1) * w.number[k] + f * a * sum.number[k];
      if (ends && clamps) w.number[k] = bounds.clamped(w.number[k]);
      if (ends && k < left) consolidation.write(at + k, w.number[k]);
    }
    write_four(result + at, w, left, in_packs);
  }
};

// The operands of a part: rows of the post-synaptic side by S and J, rows of Z by P and I.
struct Operands {
  const uint8_t* spikes;                  // [rows, S, post_stride] of bools, or
  const float* post;                      // the same split into planes
  const float* z;                         // [rows, P, z_stride] split into planes
  const float *unit_of_post, *unit_of_z;  // nullptr for 1
  int64_t P, post_stride, z_stride;       // strides: multiples of 16
  int64_t post_step, z_step;              // to the next of the rows that a thread copies
  int64_t begin, rows;                    // the rows before `begin` count in one part only
};

constexpr int kTileJ = 64, kTileI = 128, kDepth = 16, kStages = 3;
constexpr int kTileRow = kTileI / 4 + 1;
constexpr int kPlaneThreads = kTileJ / 4;  // that copy a row of the post-synaptic side in planes

// What is in shared memory at a time, in units of 16 bytes. Rows have one more: lanes that read at once then meet in no
// bank.
template <bool kGraded>
struct Stage {
  uint4 z[2][kDepth][kTileI / 8 + 1];  // two planes
  uint4 post[kGraded ? 2 : 1][kDepth][(kGraded ? kTileJ / 8 : kTileJ / 16) + 1];
};

__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// Four bools as bytes of 0x80 or 0: as numbers of fp16, far below 1, these are kSpike or 0.
__device__ __forceinline__ uint32_t spikes_of(uint32_t bools) {
  return (((bools & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bools) & 0x80808080u;  // true may be any byte but 0
}
constexpr float kSpike = 0x1p-17f;

// sum[j, i] of one range of rows, by tiles of 64 neurons j and 128 neurons i, 32 of them per warp. In a warp's
// fragments, row r of tile m is j = 8·(r mod 8) + 2·m + r/8 and column c of tile n is i = 4·c + n: so every lane reads
// neighbouring bytes of a row, and ends with neighbouring sums. They go to partial [splits, S, J, I] where it is there,
// else straight into the weights.
// Machine code: tensor cores, asynchronous copies, 128-bit loads, no global atomics
template <bool kGraded>
__global__ void __launch_bounds__(kThreads, 4)
    stdp_product_kernel(Operands operands, Update update, int64_t splits, float* __restrict__ partial) {
  ARTSY_SHARED(Stage<kGraded>, stages, [kStages]);
  ARTSY_SHARED(int64_t, place, [4]);  // of the tile; not in registers while the sums need them
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, in_group = lane % 4;
  const int64_t tiles_i = (update.I - 1) / kTileI + 1, tiles_j = (update.J - 1) / kTileJ + 1;
  int64_t index = blockIdx.x;
  const int64_t i0 = index % tiles_i * kTileI;
  index /= tiles_i;
  const int64_t j0 = index % tiles_j * kTileJ;
  index /= tiles_j;
  const int64_t split = index % splits, s = index / splits;

  const bool in_one_part = update.amplitudes.are_in_one_part();
  if (in_one_part && update.kind == Update::Kind::minus) return;  // the whole block does
  if (threadIdx.x == 0) place[0] = i0, place[1] = j0, place[2] = s, place[3] = split;
  const int64_t range = ((operands.rows - 1) / splits / kDepth + 1) * kDepth;
  const int64_t begin = max(in_one_part ? int64_t(0) : operands.begin, split * range);
  const int64_t end = min(operands.rows, (split + 1) * range);

  // Each thread copies 16 bytes at a time, always of the same columns: of Z 16 groups of 8 numbers in two planes, of
  // the post-synaptic side 8 of them, or 64 bytes.
  constexpr int kPostThreads = kGraded ? kPlaneThreads : 4;  // per row
  const int post_part = int(threadIdx.x) % kPostThreads, post_row = int(threadIdx.x) / kPostThreads;
  const int z_column = lane * 4, post_column = kGraded ? post_part * 4 : post_part * 16;  // planes lie side by side
  const float* z_from =
      operands.z + ((begin + warp) * operands.P + (operands.P == 1 ? 0 : s)) * operands.z_stride + i0 + z_column;
  const bool has_z = i0 + z_column < operands.z_stride;
  const bool has_post = j0 + post_column < operands.post_stride;
  int left = int(max(end - begin, int64_t(0)));  // rows to fetch
  int64_t post_from = ((begin + post_row) * update.S + s) * operands.post_stride + j0 + post_column;

  const auto fetch = [&](int stage) {
    Stage<kGraded>& to = stages[stage];
#pragma unroll
    for (int row = warp; row < warp + kDepth; row += kThreads / 32) {
      cp_async_16(&to.z[lane % 2][row][lane / 2], z_from, has_z && row < left);
      z_from += operands.z_step;
    }
    if constexpr (kGraded) {
#pragma unroll
      for (int row = post_row; row < post_row + kDepth; row += kThreads / kPostThreads) {
        cp_async_16(&to.post[post_part % 2][row][post_part / 2], operands.post + post_from, has_post && row < left);
        post_from += operands.post_step;
      }
    } else {
      if (post_row < kDepth)
        cp_async_16(&to.post[0][post_row][post_part], operands.spikes + post_from, has_post && post_row < left);
      post_from += operands.post_step;
    }
    left -= kDepth;
    cp_async_commit();
  };

  float sums[4][4][4] = {};  // [tile m][tile n][element]
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  int stage = 0;
#pragma unroll 1
  while (left > -(kStages - 1) * kDepth) {  // fetched so many stages ahead
    cp_async_wait<kStages - 2>();
    __syncthreads();  // everyone's copies are there, and the stage of the round before is free
    fetch(stage == 0 ? kStages - 1 : stage - 1);
    const Stage<kGraded>& from = stages[stage];
    stage = stage == kStages - 1 ? 0 : stage + 1;

    uint32_t z[2][4][2];  // [plane][tile n][half of the depth]
#pragma unroll
    for (int plane = 0; plane < 2; ++plane) {
      uint2 row[4];
#pragma unroll
      for (int r = 0; r < 4; ++r)
        row[r] = reinterpret_cast<const uint2*>(from.z[plane][in_group * 2 + r % 2 + r / 2 * 8])[warp * 8 + g];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 a = row[half + half], b = row[half + half + 1];
        z[plane][0][half] = low_halves(a.x, b.x);
        z[plane][1][half] = high_halves(a.x, b.x);
        z[plane][2][half] = low_halves(a.y, b.y);
        z[plane][3][half] = high_halves(a.y, b.y);
      }
    }
    if constexpr (kGraded) {
#pragma unroll 1
      for (int plane = 0; plane < 2; ++plane) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          uint32_t word[4];
#pragma unroll
          for (int r = 0; r < 4; ++r)
            word[r] = reinterpret_cast<const uint32_t*>(from.post[plane][in_group * 2 + r % 2 + r / 2 * 8])[g * 4 + m];
          const uint32_t post[4] = {low_halves(word[0], word[1]), high_halves(word[0], word[1]),
                                    low_halves(word[2], word[3]), high_halves(word[2], word[3])};
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            mma_m16n8k16_fp16(sums[m][n], post, z[0][n]);
            if (plane == 0) mma_m16n8k16_fp16(sums[m][n], post, z[1][n]);  // low times low would be below all bits
          }
        }
      }
    } else {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {  // of tiles m
        uint32_t word[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          word[r] = spikes_of(
              reinterpret_cast<const uint32_t*>(from.post[0][in_group * 2 + r % 2 + r / 2 * 8])[g * 2 + pair]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t first = m == 0 ? low_halves(word[0], word[1]) : high_halves(word[0], word[1]);
          const uint32_t second = m == 0 ? low_halves(word[2], word[3]) : high_halves(word[2], word[3]);
          const uint32_t post[4] = {first & 0x00ff00ffu, first >> 8 & 0x00ff00ffu, second & 0x00ff00ffu,
                                    second >> 8 & 0x00ff00ffu};
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            mma_m16n8k16_fp16(sums[2 * pair + m][n], post, z[0][n]);
            mma_m16n8k16_fp16(sums[2 * pair + m][n], post, z[1][n]);
          }
        }
      }
    }
  }
  cp_async_wait<0>();

  // By way of shared memory, so that a warp reads and writes whole rows; half a tile at a time.
  auto& tile = *reinterpret_cast<Four<float>(*)[32][kTileRow]>(stages);
  static_assert(sizeof(tile) <= sizeof(stages), "half a tile of sums fits");
  const float unit_of_post = kGraded ? (operands.unit_of_post ? *operands.unit_of_post : 1) : 1 / kSpike;
  const float unit = (operands.unit_of_z ? *operands.unit_of_z : 1) * unit_of_post;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          Four<float> four;
#pragma unroll
          for (int n = 0; n < 4; ++n) four.number[n] = unit * sums[2 * half + m][n][2 * r + c];
          tile[4 * g + 2 * m + r][warp * 8 + in_group * 2 + c] = four;
        }
    __syncthreads();
#pragma unroll 1
    for (int row = warp; row < 32; row += kThreads / 32) {
      const int column = lane * 4, row_of_tile = row / 4 * 8 + half * 4 + row % 4;
      const int64_t i = place[0] + column, j = place[1] + row_of_tile;
      if (j >= update.J || i >= update.I) continue;
      const int64_t at = (place[2] * update.J + j) * update.I + i;
      const Four<float> sum = tile[row][lane];
      if (partial)
        write_four(partial + place[3] * update.S * update.J * update.I + at, sum, update.I - i, update.in_packs);
      else
        update.apply(place[2], at, update.I - i, sum, in_one_part);
    }
  }
}

// Adds the ranges up, from the first to the last.
// Machine code: 128-bit loads, 128-bit stores, no global atomics
__global__ void __launch_bounds__(kThreads)
    stdp_update_kernel(Update update, int64_t splits, const float* __restrict__ partial) {
  const bool in_one_part = update.amplitudes.are_in_one_part();
  if (in_one_part && update.kind == Update::Kind::minus) return;
  const int64_t groups = (update.I - 1) / 4 + 1, rows = update.S * update.J;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x, row = item / groups;
  if (row >= rows) return;
  const int64_t i = item % groups * 4, at = row * update.I + i, left = update.I - i;
  Four<float> sum = {};
  for (int64_t split = 0; split < splits; ++split) {
    const Four<float> more = read_four(partial + split * rows * update.I + at, left, update.in_packs);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum.number[k] += more.number[k];
  }
  update.apply(row / update.J, at, left, sum, in_one_part);
}

// --- All other rules: step by step

// Weights [S, J, I] and both sides, as follow left them.
template <class Real>
struct Steps {
  const Real* weight;
  Real* result;
  int64_t T, B, S, J, I, P;  // P: sub-networks of the pre-synaptic side
  bool in_packs;
  const Real *x, *minus, *slow;  // [T, B, P, pre_stride]; slow: or nullptr
  const Real *plus, *y;          // [T, B, S, post_stride]
  int64_t pre_stride, post_stride;
  const Real* a_minus;  // [S]
  Real keep;
  bool evaluates_each_step, clamps_each_step, clamps_at_the_end;
  Bounds<Real> bounds;
  Consolidation<Real> consolidation;

  __device__ __forceinline__ Real last(Real w) const { return clamps_at_the_end ? bounds.clamped(w) : w; }
};

template <class Real>
constexpr int kRows = std::is_same_v<Real, double> ? 2 : 4;  // of weights, per thread
constexpr int kStepI = 64, kStepB = 8;
template <class Real>
constexpr int kStepJ = kThreads / (kStepI / 4) * kRows<Real>;

// A tile of weights stays in registers for all steps, a few rows of four weights per thread; the sides of a step come
// through shared memory, some samples at a time.
// Machine code: 128-bit loads, no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_step_kernel(Steps<Real> steps) {
  constexpr int rows = kRows<Real>, J = kStepJ<Real>;
  ARTSY_SHARED(Four<Real>, x, [kStepB][kStepI / 4]);
  ARTSY_SHARED(Four<Real>, minus, [kStepB][kStepI / 4]);
  ARTSY_SHARED(Four<Real>, plus, [kStepB][J / 4]);
  ARTSY_SHARED(Four<Real>, y, [kStepB][J / 4]);
  const int column = int(threadIdx.x) % (kStepI / 4), row = int(threadIdx.x) / (kStepI / 4) * rows,
            first_i = column * 4;
  const int64_t tiles_i = (steps.I - 1) / kStepI + 1, tiles_j = (steps.J - 1) / J + 1;
  const int64_t i0 = blockIdx.x % tiles_i * kStepI, j0 = blockIdx.x / tiles_i % tiles_j * J;
  const int64_t s = blockIdx.x / tiles_i / tiles_j, p = steps.P == 1 ? 0 : s;
  const int64_t i = i0 + first_i, left = steps.I - i, at = (s * steps.J + j0 + row) * steps.I + i;
  const Real a_minus = steps.a_minus[s];

  Four<Real> w[rows], before[rows];
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    w[r] = {};
    if (j0 + row + r < steps.J) w[r] = read_four(steps.weight + at + r * steps.I, left, steps.in_packs);
    before[r] = w[r];
  }
#pragma unroll 1
  for (int64_t t = 0; t < steps.T; ++t) {
    Four<Real> ltp[rows] = {}, ltd[rows] = {};
#pragma unroll 1
    for (int64_t first = 0; first < steps.B; first += kStepB) {
      __syncthreads();  // all have read the samples before
      {
        static_assert(kStepB * (kStepI / 4) == kThreads, "one read per thread");
        const int b = int(threadIdx.x) / (kStepI / 4);
        const int64_t from = ((t * steps.B + first + b) * steps.P + p) * steps.pre_stride + i;
        Four<Real> read = {}, counts = {};
        if (first + b < steps.B && i < steps.pre_stride) {
          read = load<Real, 4>(steps.x + from);
          counts = load<Real, 4>(steps.minus + from);
#pragma unroll
          for (int n = 0; n < 4; ++n) counts.number[n] *= a_minus;
          if (steps.slow) {
            const auto slow = load<Real, 4>(steps.slow + from);
#pragma unroll
            for (int n = 0; n < 4; ++n) counts.number[n] += slow.number[n];
          }
        }
        x[b][column] = read;
        minus[b][column] = counts;
      }
      if (threadIdx.x < kStepB * (J / 4)) {
        const int b = int(threadIdx.x) / (J / 4), n = int(threadIdx.x) % (J / 4), first_j = n * 4;
        const int64_t from = ((t * steps.B + first + b) * steps.S + s) * steps.post_stride + j0 + first_j;
        const bool is_there = first + b < steps.B && j0 + first_j < steps.post_stride;
        plus[b][n] = is_there ? load<Real, 4>(steps.plus + from) : Four<Real>{};
        y[b][n] = is_there ? load<Real, 4>(steps.y + from) : Four<Real>{};
      }
      __syncthreads();
#pragma unroll 2
      for (int b = 0; b < kStepB; ++b) {
        const Four<Real> read = x[b][column], counts = minus[b][column];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          const Real fired = plus[b][(row + r) / 4].number[(row + r) % 4],
                     trace = y[b][(row + r) / 4].number[(row + r) % 4];
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            ltp[r].number[n] += fired * read.number[n];
            ltd[r].number[n] += trace * counts.number[n];
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        Real& weight = w[r].number[n];
        weight *= steps.keep;
        const Real seen = steps.evaluates_each_step ? weight : before[r].number[n];
        weight += steps.bounds.plus(seen) * ltp[r].number[n] - steps.bounds.minus(seen) * ltd[r].number[n];
        if (steps.clamps_each_step) weight = steps.bounds.clamped(weight);
      }
  }
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    if (j0 + row + r >= steps.J) continue;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      w[r].number[n] = steps.last(w[r].number[n]);
      if (n < left) steps.consolidation.write(at + r * steps.I + n, w[r].number[n]);
    }
    write_four(steps.result + at + r * steps.I, w[r], left, steps.in_packs);
  }
}

// Eligibility traces [B, S, J, I]: each synapse keeps one per sample, which m then pays for.
template <class Real>
struct Eligibility {
  const Real* given;  // or nullptr for 0
  Real* trace;
  Real decay;
  bool delayed, reads_weights;
  Factor<Real> factor;
};

// One synapse per thread. Where the weights are read at each step, step by step; else sample by sample, with the trace
// in a register.
// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_eligible_kernel(Steps<Real> steps, Eligibility<Real> eligibility) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, synapses = steps.S * steps.J * steps.I;
  if (at >= synapses) return;
  const int64_t i = at % steps.I, j = at / steps.I % steps.J, s = at / steps.I / steps.J;
  const int64_t p = steps.P == 1 ? 0 : s;
  const Real before = steps.weight[at], a_minus = steps.a_minus[s];
  Real f_plus = steps.bounds.plus(before), f_minus = steps.bounds.minus(before);

  // The new trace of sample b, of which `paid` counts.
  const auto next = [&](int64_t t, int64_t b, Real trace, Real& paid) {
    const int64_t pre = ((t * steps.B + b) * steps.P + p) * steps.pre_stride + i;
    const int64_t post = ((t * steps.B + b) * steps.S + s) * steps.post_stride + j;
    const Real counts = a_minus * steps.minus[pre] + (steps.slow ? steps.slow[pre] : Real(0));
    const Real pair = f_plus * (steps.plus[post] * steps.x[pre]) - f_minus * (steps.y[post] * counts);
    const Real now = eligibility.decay * trace + pair;
    paid = eligibility.factor.at(t, b, s) * (eligibility.delayed ? trace : now);
    return now;
  };
  const auto given = [&](int64_t b) { return eligibility.given ? eligibility.given[b * synapses + at] : Real(0); };

  Real w = before;
  if (eligibility.reads_weights) {
    for (int64_t b = 0; b < steps.B; ++b) eligibility.trace[b * synapses + at] = given(b);
    for (int64_t t = 0; t < steps.T; ++t) {
      w *= steps.keep;
      if (steps.evaluates_each_step) {
        f_plus = steps.bounds.plus(w);
        f_minus = steps.bounds.minus(w);
      }
      Real change = 0;
      for (int64_t b = 0; b < steps.B; ++b) {
        Real paid;
        Real& trace = eligibility.trace[b * synapses + at];
        trace = next(t, b, trace, paid);
        change += paid;
      }
      w += change;
      if (steps.clamps_each_step) w = steps.bounds.clamped(w);
    }
  } else {
    for (int64_t t = 0; t < steps.T; ++t) w *= steps.keep;
    for (int64_t b = 0; b < steps.B; ++b) {
      Real trace = given(b), change = 0;
      for (int64_t t = 0; t < steps.T; ++t) {
        Real paid;
        trace = next(t, b, trace, paid);
        change = steps.keep * change + paid;
      }
      eligibility.trace[b * synapses + at] = trace;
      w += change;
    }
  }
  w = steps.last(w);
  steps.result[at] = w;
  steps.consolidation.write(at, w);
}

// --- What the launcher calls. All tensors are contiguous; every size may be 0.

constexpr int64_t padded(int64_t size) { return ceil_div(size, kPad) * kPad; }

inline int64_t blocks_for(int64_t items) {
  const int64_t blocks = ceil_div(items, kThreads);
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

// Cuts one piece of memory into arrays; without memory it only measures.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += ceil_div(count * int64_t(sizeof(T)), 256) * 256;
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

template <class Real>
Factor<Real> factor_of(const Problem<Real>& p) {
  return {nullptr, p.modulation, p.mask, p.own_modulation, p.share(), p.B, p.S};
}

template <class Real>
Consolidation<Real> consolidation_of(const Problem<Real>& p) {
  return {p.functional, p.functional_result, p.on, p.off};
}

// A side with its neurons and traces, and as yet without anything to write but the traces.
template <class Real>
Side<Real> pre_side(const Problem<Real>& p, int64_t P) {
  const Rule& rule = p.rule;
  Side<Real> side = {};
  side.T = p.T, side.B = p.B, side.P = P, side.N = p.I, side.stride = padded(p.I);
  side.own = p.own_pre, side.binary = p.pre.binary;
  side.nearest = rule.nearest, side.slow = rule.triplet.has_value();
  side.reads = rule.exclusive ? Side<Real>::Reads::before : Side<Real>::Reads::after;
  side.decay = Real(rule.decay_pre), side.gain = Real(rule.gain_pre), side.target = Real(rule.x_target);
  if (rule.triplet)
    side.slow_decay = Real(rule.triplet->decay_pre_slow), side.slow_amplitude = Real(rule.triplet->a_minus);
  side.factor = {nullptr, nullptr, nullptr, false, 1, p.B, P};
  side.given = p.given.pre, side.given_slow = p.given.pre_slow;
  side.trace = p.traces.pre, side.trace_slow = p.traces.pre_slow;
  return side;
}

template <class Real>
Side<Real> post_side(const Problem<Real>& p) {
  const Rule& rule = p.rule;
  Side<Real> side = {};
  side.T = p.T, side.B = p.B, side.P = p.S, side.N = p.J, side.stride = padded(p.J);
  side.own = true, side.binary = p.post.binary;
  side.nearest = rule.nearest, side.slow = rule.triplet.has_value();
  side.reads = rule.exclusive ? Side<Real>::Reads::before : Side<Real>::Reads::after;
  side.decay = Real(rule.decay_post), side.gain = Real(rule.gain_post);
  if (rule.triplet)
    side.slow_decay = Real(rule.triplet->decay_post_slow), side.slow_amplitude = Real(rule.triplet->a_plus);
  side.factor = {nullptr, nullptr, nullptr, false, 1, p.B, p.S};
  side.given = p.given.post, side.given_slow = p.given.post_slow;
  side.trace = p.traces.post, side.trace_slow = p.traces.post_slow;
  return side;
}

template <class Real>
void follow(Side<Real> side, const artsy::stdp::Spikes& spikes, cudaStream_t stream) {
  const int64_t items = side.B * side.P * side.stride / 4, bytes = 4 * spikes.size(sizeof(Real));
  if (items == 0) return;
  if (!side.slow) side.given_slow = nullptr, side.trace_slow = nullptr;
  side.in_packs = side.N % 4 == 0 && are_aligned(bytes, static_cast<const char*>(spikes.data)) &&
                  are_aligned(4 * sizeof(Real), side.given, side.given_slow, side.trace, side.trace_slow);
  if (spikes.bytes)
    ARTSY_LAUNCH((stdp_follow_kernel<Real, uint8_t>), blocks_for(items), kThreads, 0, stream,
                 static_cast<const uint8_t*>(spikes.data), side);
  else
    ARTSY_LAUNCH((stdp_follow_kernel<Real, Real>), blocks_for(items), kThreads, 0, stream,
                 static_cast<const Real*>(spikes.data), side);
}

template <class Real>
class Stepwise {
 public:
  Stepwise(const Problem<Real>& p, void* memory) : p_(p), arena_(memory), P_(p.own_pre ? p.S : 1) {
    const int64_t pre = p.T * p.B * P_ * padded(p.I), post = p.T * p.B * p.S * padded(p.J);
    x_ = arena_.template take<Real>(pre);
    minus_ = arena_.template take<Real>(pre);
    slow_ = p.rule.triplet ? arena_.template take<Real>(pre) : nullptr;
    plus_ = arena_.template take<Real>(post);
    y_ = arena_.template take<Real>(post);
  }

  int64_t bytes() const { return arena_.bytes(); }

  void launch(cudaStream_t stream) const {
    const Rule& rule = p_.rule;
    Side<Real> pre = pre_side(p_, P_), post = post_side(p_);
    pre.read = x_, pre.counts = minus_, pre.slow_counts = slow_;
    post.read = y_, post.counts = plus_, post.amplitude = p_.a_plus;
    if (!rule.eligibility) post.factor = factor_of(p_);
    follow(pre, p_.pre, stream);
    follow(post, p_.post, stream);
    const int64_t synapses = p_.S * p_.J * p_.I;
    if (synapses == 0) return;
    const bool in_packs = p_.I % 4 == 0 && are_aligned(4 * sizeof(Real), p_.weight, p_.result);
    const Steps<Real> steps = {
        .weight = p_.weight,
        .result = p_.result,
        .T = p_.T,
        .B = p_.B,
        .S = p_.S,
        .J = p_.J,
        .I = p_.I,
        .P = P_,
        .in_packs = in_packs,
        .x = x_,
        .minus = minus_,
        .slow = slow_,
        .plus = plus_,
        .y = y_,
        .pre_stride = pre.stride,
        .post_stride = post.stride,
        .a_minus = p_.a_minus,
        .keep = Real(1 - rule.weight_decay),
        .evaluates_each_step = rule.evaluate_each_step,
        .clamps_each_step = rule.clamp == Clamp::step,
        .clamps_at_the_end = rule.clamp == Clamp::end,
        .bounds = Bounds<Real>(rule),
        .consolidation = consolidation_of(p_),
    };
    if (rule.eligibility) {
      const Eligibility<Real> eligibility = {p_.given.eligibility, p_.traces.eligibility, Real(*rule.eligibility),
                                             rule.delayed,         rule.reads_weights(),  factor_of(p_)};
      ARTSY_LAUNCH(stdp_eligible_kernel<Real>, ceil_div(synapses, kThreads), kThreads, 0, stream, steps, eligibility);
    } else {
      const int64_t tiles = p_.S * ceil_div(p_.J, kStepJ<Real>) * ceil_div(p_.I, kStepI);
      ARTSY_LAUNCH(stdp_step_kernel<Real>, tiles, kThreads, 0, stream, steps);
    }
  }

 private:
  const Problem<Real>& p_;
  Arena arena_;
  const int64_t P_;
  Real *x_, *minus_, *slow_, *plus_, *y_;
};

class Summed {
 public:
  // Blocks that fill a large GPU twice; the same number on every GPU, for the same bits.
  static constexpr int64_t kBlocks = 264;

  Summed(const Problem<float>& p, void* memory)
      : p_(p),
        arena_(memory),
        P_(p.own_pre || (p.own_modulation && p.S > 0) ? p.S : 1),
        starts_(p.given.post != nullptr),
        two_posts_(p.rule.nearest || p.rule.triplet),
        graded_(!p.post.binary || two_posts_ || starts_),
        as_they_came_(p.J % kPad == 0 && !p.mask && are_aligned(16, static_cast<const char*>(p.post.data))),
        one_part_(two_posts_ || p.rule.dependence != Dependence::none ? OnePart::never
                  : P_ == p.S                                         ? OnePart::always
                                                                      : OnePart::if_uniform),
        before_(starts_ ? p.B : 0),
        rows_(before_ + p.T * p.B),
        splits_(splits(p, rows_)) {
    power_ = p.rule.weight_decay != 0 ? arena_.take<float>(p.T) : nullptr;
    const auto array = [&](bool is_there, int64_t width) {
      return is_there ? Array{arena_.take<float>(rows_ * width), width, arena_.take<float>(kMaxBlocks),
                              arena_.take<float>(1)}
                      : Array{};
    };
    x_ = array(true, P_ * padded(p.I));
    minus_ = array(true, P_ * padded(p.I));
    slow_ = array(p.rule.triplet.has_value(), P_ * padded(p.I));
    post_ = array(graded_, p.S * padded(p.J));
    post_minus_ = array(two_posts_, p.S * padded(p.J));
    marks_ = graded_ || as_they_came_ ? nullptr : arena_.take<uint8_t>(rows_ * p.S * padded(p.J));
    partial_ = splits_ > 1 ? arena_.take<float>(splits_ * p.S * p.J * p.I) : nullptr;
  }

  int64_t bytes() const { return arena_.bytes(); }

  void launch(cudaStream_t stream) const {
    if (power_ && p_.T > 0)
      ARTSY_LAUNCH(stdp_power_kernel, ceil_div(p_.T, kThreads), kThreads, 0, stream, p_.T, 1 - p_.rule.weight_decay,
                   double(p_.share()), power_);
    prepare_pre(stream);
    prepare_post(stream);
    if (tiles(p_) == 0) return;
    using Kind = Update::Kind;
    const Array* const plus = graded_ ? &post_ : nullptr;
    add(Kind::plus, x_, plus, p_.rule.triplet ? nullptr : p_.a_plus, one_part_ == OnePart::always, stream);
    if (one_part_ == OnePart::always) return;
    const Array* const minus = two_posts_ ? &post_minus_ : plus;
    add(Kind::minus, minus_, minus, p_.a_minus, !p_.rule.triplet, stream);
    if (p_.rule.triplet) add(Kind::minus, slow_, minus, nullptr, true, stream);
  }

 private:
  // Rows [before + T·B, width], split in place.
  struct Array {
    float* rows = nullptr;
    int64_t width = 0;
    float *peaks = nullptr, *unit = nullptr;

    float* from(int64_t row) const { return rows + row * width; }
  };

  static int64_t tiles(const Problem<float>& p) { return ceil_div(p.I, kTileI) * ceil_div(p.J, kTileJ) * p.S; }

  static int64_t splits(const Problem<float>& p, int64_t rows) {
    const int64_t most = max(int64_t(1), rows / 256), least = max(int64_t(1), ceil_div(rows, int64_t(1) << 30));
    return tiles(p) == 0 ? 1 : max(least, min(ceil_div(kBlocks, tiles(p)), most));
  }

  Amplitudes amplitudes() const { return {p_.a_plus, p_.a_minus, p_.S, one_part_}; }

  void prepare_pre(cudaStream_t stream) const {
    Side<float> side = pre_side(p_, P_);
    if (p_.S > 0) side.factor = factor_of(p_);
    side.factor.mask = nullptr;
    if (power_) side.factor.power = power_, side.factor.share = 1;
    side.read = x_.from(before_), side.counts = minus_.from(before_);
    if (slow_.rows) side.slow_counts = slow_.from(before_);
    follow(side, p_.pre, stream);
    const int64_t items = p_.B * P_ * side.stride / 4;
    if (items == 0 || rows_ == 0 || tiles(p_) == 0) return;
    const Later later = {
        .x = side.read,
        .minus = side.counts,
        .slow = side.slow_counts,
        .T = p_.T,
        .B = p_.B,
        .P = P_,
        .stride = side.stride,
        .decay = float(p_.rule.decay_post),
        .gain = two_posts_ ? 1 : float(p_.rule.gain_post),
        .exclusive = p_.rule.exclusive,
        .starts = starts_,
        .amplitudes = amplitudes(),
        .peak_of_x = x_.peaks,
        .peak_of_minus = minus_.peaks,
        .peak_of_slow = slow_.peaks,
    };
    ARTSY_LAUNCH(stdp_later_kernel, blocks_for(items), kThreads, 0, stream, later);
    split(x_, 0, blocks_for(items), OnePart::never, stream);
    if (one_part_ != OnePart::always) split(minus_, 0, blocks_for(items), one_part_, stream);
    if (slow_.rows) split(slow_, 0, blocks_for(items), OnePart::never, stream);
  }

  void prepare_post(cudaStream_t stream) const {
    Side<float> side = post_side(p_);
    const int64_t blocks = blocks_for(p_.B * p_.S * side.stride / 4);
    side.factor.mask = p_.mask;
    side.marks = marks_;
    if (graded_) {
      side.counts = post_.from(before_), side.peak_of_counts = post_.peaks;
      if (starts_) side.start = (two_posts_ ? post_minus_ : post_).rows;
      if (p_.rule.triplet) side.amplitude = p_.a_plus;
    }
    if (two_posts_) {
      side.reads = Side<float>::Reads::added;
      side.read = post_minus_.from(before_), side.peak_of_read = post_minus_.peaks;
    }
    follow(side, p_.post, stream);
    if (graded_) split(post_, two_posts_ ? before_ : 0, blocks, OnePart::never, stream);
    if (two_posts_) split(post_minus_, 0, blocks, OnePart::never, stream);
  }

  void split(const Array& array, int64_t from, int64_t peaks, OnePart needless, cudaStream_t stream) const {
    const int64_t groups = (rows_ - from) * array.width / 8;
    if (groups > 0)
      ARTSY_LAUNCH(stdp_split_kernel, blocks_for(groups), kThreads, 0, stream, array.from(from), groups, array.peaks,
                   peaks, array.unit, Amplitudes{p_.a_plus, p_.a_minus, p_.S, needless});
  }

  // post: nullptr where spikes are bools.
  void add(Update::Kind kind, const Array& z, const Array* post, const float* amplitude, bool last,
           cudaStream_t stream) const {
    Operands operands = {};
    if (post)
      operands.post = post->rows;
    else
      operands.spikes = marks_ ? marks_ : static_cast<const uint8_t*>(p_.post.data);
    operands.z = z.rows;
    operands.P = P_, operands.post_stride = padded(p_.J), operands.z_stride = padded(p_.I);
    operands.z_step = P_ * operands.z_stride * (kThreads / 32);
    operands.post_step = p_.S * operands.post_stride * (post ? kThreads / kPlaneThreads : kDepth);
    operands.begin = kind == Update::Kind::plus ? before_ : 0, operands.rows = rows_;
    if (rows_ > operands.begin || (rows_ > 0 && one_part_ != OnePart::never)) {
      operands.unit_of_z = z.unit;
      if (post) operands.unit_of_post = post->unit;
    }
    const bool in_packs = p_.I % 4 == 0 && are_aligned(16, p_.weight, p_.result);
    const Update update = {
        .weight = p_.weight,
        .result = p_.result,
        .S = p_.S,
        .J = p_.J,
        .I = p_.I,
        .in_packs = in_packs,
        .kind = kind,
        .amplitude = amplitude,
        .amplitudes = amplitudes(),
        .first = kind == Update::Kind::plus,
        .last = last,
        .clamps = p_.rule.clamp == Clamp::end,
        .kept = float(std::pow(1 - p_.rule.weight_decay, double(p_.T))),
        .bounds = Bounds<float>(p_.rule),
        .consolidation = consolidation_of(p_),
    };
    const int64_t blocks = tiles(p_) * splits_;
    if (post)
      ARTSY_LAUNCH(stdp_product_kernel<true>, blocks, kThreads, 0, stream, operands, update, splits_, partial_);
    else
      ARTSY_LAUNCH(stdp_product_kernel<false>, blocks, kThreads, 0, stream, operands, update, splits_, partial_);
    if (partial_)
      ARTSY_LAUNCH(stdp_update_kernel, ceil_div(p_.S * p_.J * ceil_div(p_.I, 4), kThreads), kThreads, 0, stream, update,
                   splits_, partial_);
  }

  const Problem<float>& p_;
  Arena arena_;
  const int64_t P_;
  const bool starts_, two_posts_, graded_, as_they_came_;
  const OnePart one_part_;
  const int64_t before_, rows_, splits_;
  float *power_, *partial_;
  uint8_t* marks_;
  Array x_, minus_, slow_, post_, post_minus_;
};

template <class Real>
bool is_summed(const Problem<Real>& p) {
  return std::is_same_v<Real, float> && !p.rule.reads_weights() && !p.rule.eligibility;
}

}  // namespace plasticity

// The bytes of scratch memory that a call takes.
template <class Real>
int64_t stdp_scratch(const artsy::stdp::Problem<Real>& p) {
  if constexpr (std::is_same_v<Real, float>)
    if (plasticity::is_summed(p)) return plasticity::Summed(p, nullptr).bytes();
  return plasticity::Stepwise<Real>(p, nullptr).bytes();
}

// New weights, traces, and state of the synapses.
template <class Real>
void stdp(const artsy::stdp::Problem<Real>& p, void* scratch, cudaStream_t stream) {
  if constexpr (std::is_same_v<Real, float>)
    if (plasticity::is_summed(p)) return plasticity::Summed(p, scratch).launch(stream);
  plasticity::Stepwise<Real>(p, scratch).launch(stream);
}

}  // namespace artsy::cuda
