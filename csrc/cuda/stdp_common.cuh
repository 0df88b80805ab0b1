// What the kernels of stdp and of its gradients share: numbers in packs, what the weights see, both sides, and steps
// with a tile of weights.
#pragma once

#include "../cpu/stdp/problem.h"
#include "consolidate.cuh"
#include "numbers.cuh"

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

// --- Step by step

// Weights [S, J, I] and both sides, as follow left them.
template <class Real>
struct Steps {
  const Real* weight;
  Real* result;
  int64_t T, B, S, J, I, P;  // P: sub-networks of the pre-synaptic side
  bool in_packs;
  const Real *x, *minus, *slow;  // [T, B, P, pre_stride]; slow: or nullptr
  const Real *plus, *y;          // [T, B, S, post_stride]
  const Real* m;                 // [T, B, S]: multiplies plus and y; nullptr where follow did that
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

// Where a thread's weights are: kRows rows of four neighbours in the tile of its block.
template <class Real>
struct StepPlace {
  int column, row;           // in the tile
  int64_t s, p, j, i, left;  // of the first weight; left: numbers to the end of its row

  // Block `tile` of those that cover sub-networks from `s0` on and neurons [j0, j1).
  __device__ __forceinline__ StepPlace(const Steps<Real>& steps, int64_t tile, int64_t s0, int64_t j0, int64_t j1)
      : column(int(threadIdx.x) % (kStepI / 4)), row(int(threadIdx.x) / (kStepI / 4) * kRows<Real>) {
    const int64_t tiles_i = (steps.I - 1) / kStepI + 1, tiles_j = (j1 - j0 - 1) / kStepJ<Real> + 1;
    s = s0 + tile / tiles_i / tiles_j;
    p = steps.P == 1 ? 0 : s;
    j = j0 + tile / tiles_i % tiles_j * kStepJ<Real> + row;
    i = tile % tiles_i * kStepI + column * 4;
    left = steps.I - i;
  }
};

// The sums over the batch of a step's pairs, for all threads of a block. The sides come through shared memory, some
// samples at a time.
template <class Real>
__device__ __forceinline__ void sum_pairs(const Steps<Real>& steps, const StepPlace<Real>& place, Real a_minus,
                                          int64_t t, Four<Real> (&ltp)[kRows<Real>], Four<Real> (&ltd)[kRows<Real>]) {
  constexpr int rows = kRows<Real>, J = kStepJ<Real>;
  ARTSY_SHARED(Four<Real>, x, [kStepB][kStepI / 4]);
  ARTSY_SHARED(Four<Real>, minus, [kStepB][kStepI / 4]);
  ARTSY_SHARED(Four<Real>, plus, [kStepB][J / 4]);
  ARTSY_SHARED(Four<Real>, y, [kStepB][J / 4]);
  const int column = place.column, row = place.row;
#pragma unroll 1
  for (int64_t first = 0; first < steps.B; first += kStepB) {
    __syncthreads();  // all have read the samples before
    {
      static_assert(kStepB * (kStepI / 4) == kThreads, "one read per thread");
      const int b = int(threadIdx.x) / (kStepI / 4);
      const int64_t from = ((t * steps.B + first + b) * steps.P + place.p) * steps.pre_stride + place.i;
      Four<Real> read = {}, counts = {};
      if (first + b < steps.B && place.i < steps.pre_stride) {
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
      const int b = int(threadIdx.x) / (J / 4), n = int(threadIdx.x) % (J / 4);
      const int64_t first_j = place.j - row + n * 4;
      const int64_t from = ((t * steps.B + first + b) * steps.S + place.s) * steps.post_stride + first_j;
      const bool is_there = first + b < steps.B && first_j < steps.post_stride;
      Four<Real> fired = {}, trace = {};
      if (is_there) {
        fired = load<Real, 4>(steps.plus + from);
        trace = load<Real, 4>(steps.y + from);
        const Real m = steps.m ? steps.m[(t * steps.B + first + b) * steps.S + place.s] : Real(1);
#pragma unroll
        for (int k = 0; k < 4; ++k) fired.number[k] *= m, trace.number[k] *= m;
      }
      plus[b][n] = fired;
      y[b][n] = trace;
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

// --- What launchers use

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

// The traces of a side, and all that it writes. All that follows is in stdp.cu.
template <class Real>
void follow(Side<Real> side, const artsy::stdp::Spikes& spikes, cudaStream_t stream);

}  // namespace plasticity

// The bytes of scratch memory that a call takes.
template <class Real>
int64_t stdp_scratch(const artsy::stdp::Problem<Real>& p);

// New weights, traces, and state of the synapses.
template <class Real>
void stdp(const artsy::stdp::Problem<Real>& p, void* scratch, cudaStream_t stream);

}  // namespace artsy::cuda
