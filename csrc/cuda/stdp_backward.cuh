// stdp_backward on a GPU.
//
// With M₊ = G · f₊(W) and M₋ = G · f₋(W), where G arrives at what a step adds to the weights, the step's reads and
// counts on both sides (follow) receive products with the other side's, of rows (t, b) with a matrix [J, I] of
// sub-network s:
//
//     of x:     c · plus · M₊          of plus:   c · x · M₊ᵀ
//     of minus: −c · y · M₋            of y:      −c · minus · M₋ᵀ
//
// (meet), and each side is walked back in time with them (walk). In frozen rules all rows meet the same two matrices,
// and c is what the pairs of a step count in the new weights (reach). What arrives at the eligibility is a second
// source of pairs, with two matrices per sample.
//
// Rules that read the weights at each step have matrices of their own at each step. Some synapses at a time are taken
// through all steps, their weights kept at every few; then stretch by stretch from the last to the first: forwards once
// more and back, leaving the matrices of these steps (retrace, retrace_eligible), which their rows meet.
#pragma once

#include "../cpu/stdp/gradients.h"
#include "stdp_common.cuh"

namespace artsy::cuda {

namespace plasticity {

using artsy::stdp::Gradients;

// --- What the pairs of a step count

// c[t, b, s] of the pairs in the new weights, through modulation, mask, the weights' decay after t and, with an
// eligibility trace, every later step that reads it; reach[b, s]: of the eligibility before the first step; lasting[t]:
// in the eligibility after the last.
template <class Real>
struct Reach {
  int64_t T;
  Factor<Real> factor;
  double keep, decay;  // decay: of the eligibility
  bool eligible, delayed;
  Real *c, *reach, *lasting;  // the last two: or nullptr
};

// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_reach_kernel(Reach<Real> reach) {
  const Factor<Real>& factor = reach.factor;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= factor.B * factor.S) return;
  const int64_t b = item / factor.S, s = item % factor.S;
  double decayed = 1, lasting = 1, later = 0;  // later: what the trace after step t will count
  for (int64_t t = reach.T - 1; t >= 0; --t, decayed *= reach.keep, lasting *= reach.decay) {
    if (reach.lasting && item == 0) reach.lasting[t] = Real(lasting);
    const double now = decayed * double(factor.at(t, b, s));
    const double through = reach.eligible ? now + reach.decay * later : now;
    reach.c[t * factor.B * factor.S + item] = Real(reach.eligible && reach.delayed ? later : through);
    later = through;
  }
  if (reach.reach) reach.reach[item] = Real(reach.delayed ? later : reach.decay * later);
}

// --- Matrices of frozen rules

// What passes back through the clamp: all inside the bounds, nothing at them or beyond.
template <class Real>
__device__ __forceinline__ Real passed(const Bounds<Real>& bounds, Real gradient, Real w) {
  return w > bounds.w_min && w < bounds.w_max ? gradient : Real(0);
}

// f₊' and f₋'; 0 where a soft bound is reached.
template <class Real>
__device__ __forceinline__ Real slope(const Bounds<Real>& bounds, Real distance, Real sign) {
  if (bounds.dependence == Dependence::proportional) return 1;
  if (bounds.dependence != Dependence::soft || bounds.exponent == 0 || distance <= 0) return 0;
  if (bounds.exponent == 1) return sign;
  return sign * bounds.exponent * (bounds.exponent == 2 ? distance : general_power(distance, bounds.exponent - 1));
}
template <class Real>
__device__ __forceinline__ Real slope_plus(const Bounds<Real>& bounds, Real w) {
  return slope(bounds, bounds.w_max - w, Real(-1));
}
template <class Real>
__device__ __forceinline__ Real slope_minus(const Bounds<Real>& bounds, Real w) {
  return slope(bounds, w - bounds.w_min, Real(1));
}

// A factor may be infinite where nothing arrives.
template <class Real>
__device__ __forceinline__ Real times(Real gradient, Real factor) {
  return gradient == 0 ? Real(0) : gradient * factor;
}

// weights: before the clamp at the end -> what arrives before it.
// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads)
    stdp_pass_kernel(int64_t size, const Real* __restrict__ arriving, Bounds<Real> bounds, Real* weights) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at < size) weights[at] = passed(bounds, arriving[at], weights[at]);
}

// One matrix for all samples, or one per sample.
template <class Real>
struct Matrices {
  const Real *arriving, *weight;  // [samples, S, J, I], [S, J, I]
  int64_t samples, S, synapses;   // synapses: of a sub-network
  Bounds<Real> bounds;
  Real *plus, *minus;  // as arriving, or nullptr
  Real* start;  // as arriving: the gradient of what the steps start with, kept · arriving + reach · other; or nullptr
  Real kept;
  const Real *reach, *other;  // [samples, S], [S, J, I]; or nullptr
};

// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_matrices_kernel(Matrices<Real> m) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, size = m.S * m.synapses;
  if (at >= m.samples * size) return;
  const int64_t synapse = at % size;
  const Real gradient = m.arriving[at];
  if (m.plus) {
    const Real w = m.weight[synapse];
    m.plus[at] = times(gradient, m.bounds.plus(w));
    m.minus[at] = times(gradient, m.bounds.minus(w));
  }
  if (m.start) {
    Real start = m.kept * gradient;
    if (m.reach) start += m.reach[at / size * m.S + synapse / m.synapses] * m.other[synapse];
    m.start[at] = start;
  }
}

// The gradient of the weights that f reads once, before the first step.
template <class Real>
struct Sensitivity {
  const Real* arriving;  // [S, J, I] or, if there is one per sample, [B, S, J, I]
  bool per_sample;
  Factor<Real> factor;
  Real* gradient;  // [S, J, I], to which it is added
};

// By tiles as the step kernel; all steps of one sample, then the next.
// Machine code: 128-bit loads, no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_sensitivity_kernel(Steps<Real> steps, Sensitivity<Real> sensitivity) {
  constexpr int rows = kRows<Real>, J = kStepJ<Real>;
  ARTSY_SHARED(Four<Real>, x, [kStepB][kStepI / 4]);
  ARTSY_SHARED(Four<Real>, minus, [kStepB][kStepI / 4]);
  ARTSY_SHARED(Four<Real>, plus, [kStepB][J / 4]);
  ARTSY_SHARED(Four<Real>, y, [kStepB][J / 4]);
  const StepPlace<Real> place(steps, blockIdx.x, 0, 0, steps.J);
  const int column = place.column, row = place.row;
  const int64_t at = (place.s * steps.J + place.j) * steps.I + place.i, size = steps.S * steps.J * steps.I;
  const Real a_minus = steps.a_minus[place.s];
  Four<Real> ltp[rows] = {}, ltd[rows] = {}, sums[rows] = {};
#pragma unroll 1
  for (int64_t b = 0; b < steps.B; ++b) {
#pragma unroll 1
    for (int64_t first = 0; first < steps.T; first += kStepB) {
      __syncthreads();  // all have read the steps before
      {
        const int k = int(threadIdx.x) / (kStepI / 4);
        const int64_t from = (((first + k) * steps.B + b) * steps.P + place.p) * steps.pre_stride + place.i;
        Four<Real> read = {}, counts = {};
        if (first + k < steps.T && place.i < steps.pre_stride) {
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
        x[k][column] = read;
        minus[k][column] = counts;
      }
      if (threadIdx.x < kStepB * (J / 4)) {
        const int k = int(threadIdx.x) / (J / 4), n = int(threadIdx.x) % (J / 4);
        const int64_t t = first + k, j = place.j - row + n * 4;
        const int64_t from = ((t * steps.B + b) * steps.S + place.s) * steps.post_stride + j;
        Four<Real> fired = {}, trace = {};
        if (t < steps.T && j < steps.post_stride) {
          const Real c = sensitivity.factor.at(t, b, place.s);
          fired = load<Real, 4>(steps.plus + from);
          trace = load<Real, 4>(steps.y + from);
#pragma unroll
          for (int m = 0; m < 4; ++m) fired.number[m] *= c, trace.number[m] *= c;
        }
        plus[k][n] = fired;
        y[k][n] = trace;
      }
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < kStepB; ++k) {
        const Four<Real> read = x[k][column], counts = minus[k][column];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          const Real fired = plus[k][(row + r) / 4].number[(row + r) % 4],
                     trace = y[k][(row + r) / 4].number[(row + r) % 4];
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            ltp[r].number[n] += fired * read.number[n];
            ltd[r].number[n] += trace * counts.number[n];
          }
        }
      }
    }
    if (!sensitivity.per_sample && b + 1 < steps.B) continue;
    const Real* const arriving = sensitivity.arriving + (sensitivity.per_sample ? b * size : 0);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (place.j + r >= steps.J) continue;
      const Four<Real> w = read_four(steps.weight + at + r * steps.I, place.left, steps.in_packs);
      const Four<Real> gradient = read_four(arriving + at + r * steps.I, place.left, steps.in_packs);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Real change = slope_plus(steps.bounds, w.number[n]) * ltp[r].number[n] -
                            slope_minus(steps.bounds, w.number[n]) * ltd[r].number[n];
        sums[r].number[n] += times(gradient.number[n], change);
      }
      ltp[r] = {}, ltd[r] = {};
    }
  }
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    if (place.j + r >= steps.J) continue;
    Real* const to = sensitivity.gradient + at + r * steps.I;
    Four<Real> sum = read_four(to, place.left, steps.in_packs);
#pragma unroll
    for (int n = 0; n < 4; ++n) sum.number[n] += sums[r].number[n];
    write_four(to, sum, place.left, steps.in_packs);
  }
}

// --- Rules that read the weights: some synapses at a time, through a stretch of steps

// Neurons [j, j + J) of sub-networks [s, s + S). Arrays of them are [S, J, I].
struct Chunk {
  int64_t s, S, j, J;
};

template <class Real>
struct Stretch {
  Chunk chunk;
  int64_t begin, end;    // steps
  bool ends;             // with the last step, after which the weights are clamped
  const Real* from;      // weights before the stretch
  Real* to;              // and after it; nullptr: the way back is taken, too
  const Real* arriving;  // gradient of the weights after the stretch,
  Real* leaving;         // and before it
  Real* direct;          // of the first weights where f reads these, what the steps from here on find; or nullptr
  Real *plus, *minus;    // [steps, S, J, I], with eligibility [steps, B, S, J, I]; minus: nullptr where f is 1

  // Of each sample, with eligibility. Null stands for 0.
  const Real* eligibility_from;
  int64_t from_by_sample;
  Real* eligibility_to;
  const Real* arriving_eligibility;
  int64_t arriving_by_sample;
  Real* leaving_eligibility;
  int64_t leaving_by_sample;
  Real* weights;  // [steps, S, J, I]
  Real* paid;     // [steps, B, S, J, I]: what the modulation meets; or nullptr
};

// What a step reads: w is the weight after the step before, which is kept without its clamp but for the first.
template <class Real>
__device__ __forceinline__ Real decayed_weight(const Steps<Real>& steps, Real w, bool is_clamped) {
  return steps.keep * (is_clamped || !steps.clamps_each_step ? w : steps.bounds.clamped(w));
}

// By tiles as the step kernel.
// Machine code: 128-bit loads, 128-bit stores, no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_retrace_kernel(Steps<Real> steps, Stretch<Real> stretch) {
  constexpr int rows = kRows<Real>;
  const Chunk& chunk = stretch.chunk;
  const StepPlace<Real> place(steps, blockIdx.x, chunk.s, chunk.j, chunk.j + chunk.J);
  const int64_t here = ((place.s - chunk.s) * chunk.J + place.j - chunk.j) * steps.I + place.i;
  const int64_t size = chunk.S * chunk.J * steps.I, left = place.left, end_j = chunk.j + chunk.J;
  const Real a_minus = steps.a_minus[place.s];
  const bool is_weighted = stretch.minus != nullptr;
  const Real* const first = steps.weight + (place.s * steps.J + place.j) * steps.I + place.i;

  Four<Real> w[rows];
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    w[r] = {};
    if (place.j + r < end_j) w[r] = read_four(stretch.from + here + r * steps.I, left, steps.in_packs);
  }
#pragma unroll 1
  for (int64_t t = stretch.begin; t < stretch.end; ++t) {
    Four<Real> ltp[rows] = {}, ltd[rows] = {};
    sum_pairs(steps, place, a_minus, t, ltp, ltd);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (place.j + r >= end_j) continue;
      Four<Real> before = {}, sensitivity = {};
      if (!steps.evaluates_each_step) before = read_four(first + r * steps.I, left, steps.in_packs);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Real decayed = decayed_weight(steps, w[r].number[n], t == stretch.begin);
        const Real seen = steps.evaluates_each_step ? decayed : before.number[n];
        w[r].number[n] =
            decayed + steps.bounds.plus(seen) * ltp[r].number[n] - steps.bounds.minus(seen) * ltd[r].number[n];
        if (is_weighted)
          sensitivity.number[n] =
              slope_plus(steps.bounds, seen) * ltp[r].number[n] - slope_minus(steps.bounds, seen) * ltd[r].number[n];
      }
      if (stretch.to) continue;
      const int64_t at = (t - stretch.begin) * size + here + r * steps.I;
      write_four(stretch.plus + at, w[r], left, steps.in_packs);
      if (is_weighted) write_four(stretch.minus + at, sensitivity, left, steps.in_packs);
    }
  }
  if (stretch.to) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (place.j + r >= end_j) continue;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (steps.clamps_each_step) w[r].number[n] = steps.bounds.clamped(w[r].number[n]);
      write_four(stretch.to + here + r * steps.I, w[r], left, steps.in_packs);
    }
    return;  // the whole block does
  }

#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    if (place.j + r >= end_j) continue;
    const int64_t row = here + r * steps.I;
    const Four<Real> read_first = read_four(first + r * steps.I, left, steps.in_packs);
    Four<Real> gradient = read_four(stretch.arriving + row, left, steps.in_packs), direct = {};
    Four<Real> now = read_four(stretch.plus + (stretch.end - stretch.begin - 1) * size + row, left, steps.in_packs);
#pragma unroll 1
    for (int64_t t = stretch.end - 1; t >= stretch.begin; --t) {
      const int64_t at = (t - stretch.begin) * size + row;
      const bool is_first = t == stretch.begin;
      const bool clamps = steps.clamps_each_step || (stretch.ends && t + 1 == stretch.end && steps.clamps_at_the_end);
      const Four<Real> old = read_four(is_first ? stretch.from + row : stretch.plus + at - size, left, steps.in_packs);
      const Four<Real> sensitivity = is_weighted ? read_four(stretch.minus + at, left, steps.in_packs) : Four<Real>{};
      Four<Real> plus, minus;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Real found = clamps ? passed(steps.bounds, gradient.number[n], now.number[n]) : gradient.number[n];
        const Real seen =
            steps.evaluates_each_step ? decayed_weight(steps, old.number[n], is_first) : read_first.number[n];
        plus.number[n] = times(found, steps.bounds.plus(seen));
        minus.number[n] = times(found, steps.bounds.minus(seen));
        const Real of_read = times(found, sensitivity.number[n]);
        direct.number[n] += of_read;
        gradient.number[n] = steps.keep * (steps.evaluates_each_step ? found + of_read : found);
      }
      write_four(stretch.plus + at, plus, left, steps.in_packs);
      if (is_weighted) write_four(stretch.minus + at, minus, left, steps.in_packs);
      now = old;
    }
    if (stretch.direct) {
      if (!stretch.ends) {
        const Four<Real> more = read_four(stretch.direct + row, left, steps.in_packs);
#pragma unroll
        for (int n = 0; n < 4; ++n) direct.number[n] += more.number[n];
      }
      write_four(stretch.direct + row, direct, left, steps.in_packs);
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (stretch.begin == 0) gradient.number[n] += direct.number[n];
    }
    write_four(stretch.leaving + row, gradient, left, steps.in_packs);
  }
}

// One synapse per thread.
// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads)
    stdp_retrace_eligible_kernel(Steps<Real> steps, Stretch<Real> stretch, Eligibility<Real> eligibility) {
  const Chunk& chunk = stretch.chunk;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, size = chunk.S * chunk.J * steps.I;
  if (at >= size) return;
  const int64_t i = at % steps.I, j = chunk.j + at / steps.I % chunk.J, s = chunk.s + at / steps.I / chunk.J;
  const int64_t p = steps.P == 1 ? 0 : s;
  const Real first = steps.weight[(s * steps.J + j) * steps.I + i], a_minus = steps.a_minus[s];
  const auto pairs_of = [&](int64_t t, int64_t b, Real& ltp, Real& ltd) {
    const int64_t pre = ((t * steps.B + b) * steps.P + p) * steps.pre_stride + i;
    const int64_t post = ((t * steps.B + b) * steps.S + s) * steps.post_stride + j;
    ltp = steps.plus[post] * steps.x[pre];
    ltd = steps.y[post] * (a_minus * steps.minus[pre] + (steps.slow ? steps.slow[pre] : Real(0)));
  };

  for (int64_t b = 0; b < steps.B; ++b)
    stretch.eligibility_to[b * size + at] =
        stretch.eligibility_from ? stretch.eligibility_from[b * stretch.from_by_sample + at] : Real(0);
  Real w = stretch.from[at];
  for (int64_t t = stretch.begin; t < stretch.end; ++t) {
    const int64_t step = t - stretch.begin;
    w = decayed_weight(steps, w, step == 0);
    const Real seen = steps.evaluates_each_step ? w : first;
    const Real f_plus = steps.bounds.plus(seen), f_minus = steps.bounds.minus(seen);
    Real change = 0;
    for (int64_t b = 0; b < steps.B; ++b) {
      Real ltp, ltd;
      pairs_of(t, b, ltp, ltd);
      Real& trace = stretch.eligibility_to[b * size + at];
      const Real before = trace;
      trace = eligibility.decay * before + (f_plus * ltp - f_minus * ltd);
      const Real reads = eligibility.delayed ? before : trace;
      change += eligibility.factor.at(t, b, s) * reads;
      if (stretch.paid && !stretch.to) stretch.paid[(step * steps.B + b) * size + at] = reads;
    }
    w += change;
    if (!stretch.to) stretch.weights[step * size + at] = w;
  }
  if (stretch.to) {
    stretch.to[at] = steps.clamps_each_step ? steps.bounds.clamped(w) : w;
    return;
  }

  for (int64_t b = 0; b < steps.B; ++b)
    stretch.leaving_eligibility[b * stretch.leaving_by_sample + at] =
        stretch.arriving_eligibility[b * stretch.arriving_by_sample + at];
  Real gradient = stretch.arriving[at], direct = stretch.direct && !stretch.ends ? stretch.direct[at] : Real(0);
  for (int64_t t = stretch.end - 1; t >= stretch.begin; --t) {
    const int64_t step = t - stretch.begin;
    if (steps.clamps_each_step || (stretch.ends && t + 1 == stretch.end && steps.clamps_at_the_end))
      gradient = passed(steps.bounds, gradient, stretch.weights[step * size + at]);
    const Real old = step == 0 ? stretch.from[at] : stretch.weights[(step - 1) * size + at];
    const Real seen = steps.evaluates_each_step ? decayed_weight(steps, old, step == 0) : first;
    const Real f_plus = steps.bounds.plus(seen), f_minus = steps.bounds.minus(seen);
    const Real of_plus = slope_plus(steps.bounds, seen), of_minus = slope_minus(steps.bounds, seen);
    Real of_read = 0;
    for (int64_t b = 0; b < steps.B; ++b) {
      const int64_t row = (step * steps.B + b) * size + at;
      Real ltp, ltd;
      pairs_of(t, b, ltp, ltd);
      Real& trace = stretch.leaving_eligibility[b * stretch.leaving_by_sample + at];
      const Real paid = eligibility.factor.at(t, b, s) * gradient;
      const Real pair = eligibility.delayed ? trace : trace + paid;
      trace = eligibility.decay * pair + (eligibility.delayed ? paid : Real(0));
      stretch.plus[row] = times(pair, f_plus);
      if (stretch.minus) stretch.minus[row] = times(pair, f_minus);
      of_read += times(pair, of_plus * ltp - of_minus * ltd);
      if (stretch.paid) stretch.paid[row] = times(gradient, stretch.paid[row]);
    }
    direct += of_read;
    gradient = steps.keep * (steps.evaluates_each_step ? gradient + of_read : gradient);
  }
  if (stretch.direct) {
    stretch.direct[at] = direct;
    if (stretch.begin == 0) gradient += direct;
  }
  stretch.leaving[at] = gradient;
}

// --- Products of rows and matrices

// Row r of group g is (t, b) = first + g · group + r · row, t · B + b as one number; the rows of a group meet the same
// matrices.
struct Groups {
  int64_t first, count, group, rows, row;
};

template <class Real>
struct Meeting {
  Groups groups;
  Chunk chunk;
  const Real* matrix;  // [groups, S, J, I] of the chunk
  bool in_packs;
  int64_t B, S, I, P;
  const Real* from;  // one side's rows, [T, B, S, from_stride] of the post-synaptic side or [T, B, P, from_stride]
  Real* to;          // the other side's
  int64_t from_stride, to_stride;
  Factor<Real> factor;
  const Real* amplitude;  // [S], or nullptr for 1
  Real sign;
  bool adds;
};

constexpr int kMeetRows = 64, kMeetColumns = 64, kMeetDepth = 16;

// to[row, n] = sign · Σ_k factor · amplitude · from[row, k] · matrix[k, n]: to the pre-synaptic side, where k is j and
// n is i, also over the sub-networks that share it; or to the post-synaptic side, where k is i and n is j.
// Machine code: 128-bit loads, no global atomics
template <class Real, bool kToPost>
__global__ void __launch_bounds__(kThreads) stdp_meet_kernel(Meeting<Real> meeting) {
  ARTSY_SHARED(Four<Real>, left, [kMeetDepth][kMeetRows / 4 + 1]);
  ARTSY_SHARED(Four<Real>, right, [kMeetDepth][kMeetColumns / 4 + 1]);
  constexpr int kLoads = kMeetRows * kMeetDepth / 4 / kThreads;  // of four numbers, per thread and operand
  const Groups& groups = meeting.groups;
  const Chunk& chunk = meeting.chunk;
  const bool sums_up = !kToPost && meeting.P == 1;
  const int64_t N = kToPost ? chunk.J : meeting.I, K = kToPost ? meeting.I : chunk.J;
  const int64_t tiles_n = (N - 1) / kMeetColumns + 1, tiles_r = (groups.rows - 1) / kMeetRows + 1;
  int64_t index = blockIdx.x;
  const int64_t n0 = index % tiles_n * kMeetColumns;
  index /= tiles_n;
  const int64_t r0 = index % tiles_r * kMeetRows;
  index /= tiles_r;
  const int64_t group = index % groups.count, part = index / groups.count;
  const int column = int(threadIdx.x) % (kMeetColumns / 4), row = int(threadIdx.x) / (kMeetColumns / 4) * 8;
  const auto row_of = [&](int64_t r) { return groups.first + group * groups.group + r * groups.row; };

  Real sums[8][4] = {};
#pragma unroll 1
  for (int64_t s = sums_up ? 0 : part; s < (sums_up ? chunk.S : part + 1); ++s) {
    const int64_t of_all = chunk.s + s;  // among all sub-networks
    const Real* const matrix = meeting.matrix + (group * chunk.S + s) * chunk.J * meeting.I;
    const Real* from[kLoads];
    Real scale[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int item = int(threadIdx.x) + n * kThreads, k = item % (kMeetDepth / 4) * 4;
      const int64_t r = r0 + item / (kMeetDepth / 4), at = row_of(r);
      from[n] = nullptr;
      scale[n] = 0;
      if (r >= groups.rows) continue;
      if constexpr (kToPost) {
        from[n] = meeting.from + (at * meeting.P + (meeting.P == 1 ? 0 : of_all)) * meeting.from_stride + k;
        scale[n] = 1;
      } else {
        from[n] = meeting.from + (at * meeting.S + of_all) * meeting.from_stride + chunk.j + k;
        scale[n] = meeting.factor.at(at / meeting.B, at % meeting.B, of_all);
        if (meeting.amplitude) scale[n] *= meeting.amplitude[of_all];
      }
    }
#pragma unroll 1
    for (int64_t k0 = 0; k0 < K; k0 += kMeetDepth) {
      __syncthreads();  // all have read what was there
#pragma unroll
      for (int n = 0; n < kLoads; ++n) {
        const int item = int(threadIdx.x) + n * kThreads;
        const int k = item % (kMeetDepth / 4) * 4, r = item / (kMeetDepth / 4);
        const Four<Real> four = from[n] ? load<Real, 4>(from[n] + k0) : Four<Real>{};
#pragma unroll
        for (int m = 0; m < 4; ++m)
          left[k + m][r / 4].number[r % 4] = kToPost ? four.number[m] : scale[n] * four.number[m];
        if constexpr (kToPost) {
          const int64_t j = n0 + r, i = k0 + k;
          Four<Real> weights = {};
          if (j < N) weights = read_four(matrix + j * meeting.I + i, meeting.I - i, meeting.in_packs);
#pragma unroll
          for (int m = 0; m < 4; ++m) right[k + m][r / 4].number[r % 4] = weights.number[m];
        } else {
          const int depth = item / (kMeetColumns / 4), c = item % (kMeetColumns / 4);
          const int64_t j = k0 + depth, i = n0 + c * 4;
          right[depth][c] =
              j < K ? read_four(matrix + j * meeting.I + i, meeting.I - i, meeting.in_packs) : Four<Real>{};
        }
      }
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kMeetDepth; ++k) {
        const Four<Real> low = left[k][row / 4], high = left[k][row / 4 + 1], weights = right[k][column];
#pragma unroll
        for (int r = 0; r < 8; ++r)
#pragma unroll
          for (int n = 0; n < 4; ++n) sums[r][n] += (r < 4 ? low : high).number[r % 4] * weights.number[n];
      }
    }
  }

  const int64_t s = chunk.s + part, n = n0 + column * 4;
  if (n >= (N + kPad - 1) / kPad * kPad) return;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int64_t r = r0 + row + k, at = row_of(r);
    if (r >= groups.rows) continue;
    Real scale = meeting.sign;
    int64_t place;
    if constexpr (kToPost) {
      scale *= meeting.factor.at(at / meeting.B, at % meeting.B, s);
      place = (at * meeting.S + s) * meeting.to_stride + chunk.j + n;
    } else {
      place = (at * meeting.P + (meeting.P == 1 ? 0 : s)) * meeting.to_stride + n;
    }
    Four<Real> sum = {};
    if (meeting.adds) sum = load<Real, 4>(meeting.to + place);
#pragma unroll
    for (int m = 0; m < 4; ++m) sum.number[m] += scale * sums[k][m];
    store(meeting.to + place, sum);
  }
}

// --- Both sides

// What the steps read and count on one side [T, B, P, stride], and the gradients of it: `read` of what they read is
// by_read[p] · read + read_slow, that of what a spike counts amplitude · counts + (the slow trace's part) ·
// counts_slow.
template <class Real>
struct Walk {
  Side<Real> side;
  const Real *read, *read_slow, *by_read;  // the last two: or nullptr
  const Real *counts, *counts_slow;
  Real* slow;                           // as they: the slow trace's part of the amplitude, if there is one
  const Real *after, *after_slow;       // gradients of the traces after the last step, or nullptr
  Real *spikes, *before, *before_slow;  // gradients of the spikes and of the traces before the first step, or nullptr
  const Real* trace;                    // what the steps read of it
  Real *of_amplitude, *of_by_read;      // [B, P, stride / 4] to be summed, or nullptr
};

// Machine code: 128-bit loads, 128-bit stores, no global atomics
template <class Real, class Spike>
__global__ void __launch_bounds__(kThreads) stdp_walk_kernel(const Spike* __restrict__ spikes, Walk<Real> walk) {
  const Side<Real>& side = walk.side;
  const int64_t groups = side.stride / 4, items = side.B * side.P * groups;
  const bool is_exclusive = side.reads == Side<Real>::Reads::before;
  for (int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += int64_t(gridDim.x) * kThreads) {
    const int64_t n = item % groups * 4, p = item / groups % side.P, b = item / groups / side.P, left = side.N - n;
    const int64_t source = (b * side.P + p) * side.N + n, to = (b * side.P + p) * side.stride + n;
    const int64_t per_step = side.B * side.P;
    const Real amplitude = side.amplitude ? side.amplitude[p] : Real(1);
    const Real by_read = walk.by_read ? walk.by_read[p] : Real(1);
    const auto spikes_at = [&](int64_t t) {
      const Four<Spike> fired = read_four(spikes + t * per_step * side.N + source, left, side.in_packs);
      Four<Real> spike;
#pragma unroll
      for (int k = 0; k < 4; ++k) spike.number[k] = side.binary ? Real(fired.number[k] != 0) : Real(fired.number[k]);
      return spike;
    };
    if (side.slow) {
      Four<Real> x = {};
      if (side.given_slow) x = read_four(side.given_slow + source, left, side.in_packs);
#pragma unroll 1
      for (int64_t t = 0; t < side.T; ++t) {
        const Four<Real> spike = spikes_at(t);
        Four<Real> slow;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const Real decayed = side.slow_decay * x.number[k];
          slow.number[k] = side.slow_amplitude * decayed;
          x.number[k] = !side.nearest          ? decayed + side.gain * spike.number[k]
                        : spike.number[k] != 0 ? side.gain
                                               : decayed;
        }
        store(walk.slow + t * per_step * side.stride + to, slow);
      }
    }
    Four<Real> trace = {}, slow_trace = {};  // gradients
    if (walk.after) trace = read_four(walk.after + source, left, side.in_packs);
    if (walk.after_slow) slow_trace = read_four(walk.after_slow + source, left, side.in_packs);
    Real of_amplitude = 0, of_by_read = 0;
#pragma unroll 1
    for (int64_t t = side.T - 1; t >= 0; --t) {
      const int64_t at = t * per_step * side.stride + to;
      const Four<Real> spike = spikes_at(t);
      const Four<Real> reads = load<Real, 4>(walk.read + at), counts = load<Real, 4>(walk.counts + at);
      Four<Real> reads_slow = {}, counts_slow = {}, slow = {}, traces = {}, found;
      if (walk.read_slow) reads_slow = load<Real, 4>(walk.read_slow + at);
      if (side.slow) {
        counts_slow = load<Real, 4>(walk.counts_slow + at);
        slow = load<Real, 4>(walk.slow + at);
      }
      if (walk.of_by_read) traces = load<Real, 4>(walk.trace + at);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Real read = by_read * reads.number[k] + reads_slow.number[k];
        if (k < left) {
          of_amplitude += spike.number[k] * counts.number[k];
          of_by_read += traces.number[k] * reads.number[k];
        }
        if (!is_exclusive) trace.number[k] += read;
        found.number[k] = amplitude * counts.number[k] + slow.number[k] * counts_slow.number[k];
        if (!side.nearest) {
          found.number[k] += side.gain * (trace.number[k] + slow_trace.number[k]);
        } else if (spike.number[k] != 0) {  // a spike sets the trace: it forgets what it was
          trace.number[k] = slow_trace.number[k] = 0;
        }
        if (is_exclusive) trace.number[k] += read;
        trace.number[k] *= side.decay;
        slow_trace.number[k] =
            side.slow_decay * (slow_trace.number[k] + side.slow_amplitude * spike.number[k] * counts_slow.number[k]);
      }
      if (walk.spikes) write_four(walk.spikes + t * per_step * side.N + source, found, left, side.in_packs);
    }
    if (walk.before) write_four(walk.before + source, trace, left, side.in_packs);
    if (walk.before_slow) write_four(walk.before_slow + source, slow_trace, left, side.in_packs);
    if (walk.of_amplitude) walk.of_amplitude[item] = of_amplitude;
    if (walk.of_by_read) walk.of_by_read[item] = of_by_read;
  }
}

// --- Sums

// result[k, s] (+)= Σ_(n < outer) Σ_(m < inner) a[..] · e[..], or without e. a and e: at k · by_k + s · by_s + n · by_n
// + m.
template <class Real>
struct Sums {
  struct Operand {
    const Real* data;
    int64_t by_k, by_s, by_n;
  };
  Operand a, e;
  int64_t S, outer, inner;
  Real* result;
  int64_t result_by_k;
  bool adds;
};

// One result per block, in a fixed order.
// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_sum_kernel(Sums<Real> sums) {
  ARTSY_SHARED(double, of_thread, [kThreads]);
  const int64_t k = blockIdx.x / sums.S, s = blockIdx.x % sums.S, count = sums.outer * sums.inner;
  double sum = 0;
  for (int64_t item = threadIdx.x; item < count; item += kThreads) {
    const int64_t n = item / sums.inner, m = item % sums.inner;
    double value = double(sums.a.data[k * sums.a.by_k + s * sums.a.by_s + n * sums.a.by_n + m]);
    if (sums.e.data) value *= double(sums.e.data[k * sums.e.by_k + s * sums.e.by_s + n * sums.e.by_n + m]);
    sum += value;
  }
  of_thread[threadIdx.x] = sum;
#pragma unroll 1
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < distance) of_thread[threadIdx.x] += of_thread[threadIdx.x + distance];
  }
  if (threadIdx.x != 0) return;
  Real& result = sums.result[k * sums.result_by_k + s];
  result = Real(of_thread[0] + (sums.adds ? double(result) : 0));
}

// The post-synaptic side of all rows: what it counts and reads, and their gradients as the products leave them.
template <class Real>
struct Pairs {
  int64_t rows, S, stride;  // rows: (t, b, s)
  const Real *plus, *y, *a_minus, *c;
  Real *of_plus, *of_y, *of_y_slow;  // the last: or nullptr
  Real* result;                      // (t, b, s)
};

// All pairs of a row with what arrives there, which the factor c multiplies; then the gradients times c.
// Machine code: 128-bit loads, 128-bit stores, no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_pairs_kernel(Pairs<Real> pairs) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= pairs.rows) return;  // the whole warp does
  const Real a_minus = pairs.a_minus[row % pairs.S], c = pairs.c[row];
  Real sum = 0;
  for (int64_t n = threadIdx.x % 32 * 4; n < pairs.stride; n += 128) {
    const int64_t at = row * pairs.stride + n;
    const Four<Real> plus = load<Real, 4>(pairs.plus + at), y = load<Real, 4>(pairs.y + at);
    Four<Real> of_plus = load<Real, 4>(pairs.of_plus + at), of_y = load<Real, 4>(pairs.of_y + at), of_y_slow = {};
    if (pairs.of_y_slow) of_y_slow = load<Real, 4>(pairs.of_y_slow + at);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sum += plus.number[k] * of_plus.number[k] + y.number[k] * (a_minus * of_y.number[k] + of_y_slow.number[k]);
      of_plus.number[k] *= c, of_y.number[k] *= c, of_y_slow.number[k] *= c;
    }
    store(pairs.of_plus + at, of_plus);
    store(pairs.of_y + at, of_y);
    if (pairs.of_y_slow) store(pairs.of_y_slow + at, of_y_slow);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) pairs.result[row] = sum;
}

// What step t finds to pay for -> the gradient of its modulation.
template <class Real>
struct Paid {
  int64_t T, B, S;
  Real* pairs;         // [T, B, S]
  const Real* before;  // [B, S]: the eligibility before the first step, or nullptr
  double keep, decay;  // decay: of the eligibility; an eligibility is paid at every later step
  bool eligible, delayed;
  const uint8_t* mask;
  double share;
};

// Machine code: no global atomics
template <class Real>
__global__ void __launch_bounds__(kThreads) stdp_paid_kernel(Paid<Real> paid) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x, step = paid.B * paid.S;
  if (item >= step) return;
  const bool is_masked = paid.mask && !paid.mask[item];
  double trace = paid.before ? double(paid.before[item]) : 0;
  for (int64_t t = 0; paid.eligible && t < paid.T; ++t) {
    Real& here = paid.pairs[t * step + item];
    const double now = paid.decay * trace + double(here);
    here = Real(paid.delayed ? trace : now);
    trace = now;
  }
  double decayed = paid.share;
  for (int64_t t = paid.T - 1; t >= 0; --t, decayed *= paid.keep) {
    Real& here = paid.pairs[t * step + item];
    here = is_masked ? Real(0) : Real(decayed * double(here));
  }
}

// --- What the launcher calls

template <class Real>
class Backward {
 public:
  Backward(const Problem<Real>& p, const Gradients<Real>& g, void* memory)
      : p_(p),
        g_(g),
        arena_(memory),
        P_(p.own_pre ? p.S : 1),
        synapses_(p.S * p.J * p.I),
        is_weighted_(p.rule.dependence != Dependence::none),
        is_stepwise_(p.rule.reads_weights() && p.T * synapses_ > 0),
        is_eligible_(p.rule.eligibility.has_value()),
        has_slow_(p.rule.triplet.has_value()),
        clamps_(p.rule.clamp == Clamp::end && p.rule.bounded() && !is_stepwise_ && synapses_ > 0),
        is_sensitive_(g.weight &&
                      (p.rule.dependence == Dependence::proportional || p.rule.dependence == Dependence::soft)),
        asks_pre_(g.pre || g.given.pre || g.given.pre_slow),
        asks_post_(g.post || g.given.post || g.given.post_slow || g.a_plus || g.a_minus || g.modulation),
        share_factor_{nullptr, p.modulation, p.mask, p.own_modulation, p.share(), p.B, p.S} {
    const int64_t rows = p.T * p.B, pre = rows * P_ * padded(p.I), post = rows * p.S * padded(p.J);
    const auto take = [&](bool is_there, int64_t count) {
      return is_there ? arena_.template take<Real>(count) : nullptr;
    };
    const bool meets = asks_pre_ || asks_post_ || is_sensitive_ || is_stepwise_;
    x_ = take(meets, pre), minus_ = take(meets, pre), slow_ = take(meets && has_slow_, pre);
    plus_ = take(meets, post), y_ = take(meets, post);
    of_x_ = take(asks_pre_, pre), of_minus_ = take(asks_pre_, pre), of_slow_ = take(asks_pre_ && has_slow_, pre);
    of_plus_ = take(asks_post_, post), of_y_ = take(asks_post_, post), of_y_slow_ = take(asks_post_ && has_slow_, post);
    walk_ = take(has_slow_, asks_pre_ && pre > post ? pre : post);
    c_ = take(meets || g.given.eligibility, rows * p.S);
    reach_ = take(is_eligible_ && !is_stepwise_, p.B * p.S);
    lasting_ = take(is_eligible_ && !is_stepwise_, p.T);
    of_amplitude_ = take(g.a_plus, p.B * p.S * padded(p.J) / 4);
    of_by_read_ = take(g.a_minus, p.B * p.S * padded(p.J) / 4);
    paid_ = take(g.modulation && !p.own_modulation, rows * p.S);
    paid_before_ = take(g.modulation && is_eligible_ && p.given.eligibility && !is_stepwise_, p.B * p.S);
    unclamped_ = take(clamps_, synapses_);
    unclamped_eligibility_ = take(clamps_ && is_eligible_, p.B * synapses_);
    if (clamps_) forward_ = arena_.template take<char>(stdp_scratch(before_the_clamp()));
    const bool has_matrices = is_weighted_ && !is_stepwise_ && (asks_pre_ || asks_post_);
    const int64_t of_source = (is_eligible_ ? max(p.B, int64_t(1)) : 1) * synapses_;
    of_plus_matrix_ = take(has_matrices, of_source), of_minus_matrix_ = take(has_matrices, of_source);
    if (is_stepwise_) plan_stretches(take);
  }

  int64_t bytes() const { return arena_.bytes(); }

  void launch(cudaStream_t stream) {
    stream_ = stream;
    if (x_) follow_both();
    if (is_stepwise_)
      differentiate_steps();
    else
      differentiate_sums();
    if (asks_post_) walk_post();
    if (asks_pre_) walk_pre();
    if (g_.modulation && !p_.own_modulation)
      sum({paid_, p_.S, 0, 0}, {}, p_.T * p_.B, 1, 1, p_.S, g_.modulation, 1, false);
  }

 private:
  template <class Take>
  void plan_stretches(const Take& take) {
    // Weights are kept before each stretch, and so much of each step of one: what both take is least near the root.
    const int64_t per_sample = is_eligible_ ? p_.B : 0;
    const int64_t per_step =
        is_eligible_ ? 1 + per_sample * (1 + is_weighted_ + (g_.modulation != nullptr)) : 1 + is_weighted_;
    while (steps_ < p_.T && (steps_ + 1) * steps_ * per_step <= p_.T * (1 + per_sample)) ++steps_;
    stretches_ = ceil_div(p_.T, steps_);
    const int64_t per_synapse = stretches_ * (1 + per_sample) + steps_ * per_step + 2 + per_sample;
    // As much as the sides take, or a few times the weights.
    const int64_t room = max(max(2 * p_.T * p_.B * (P_ * p_.I + p_.S * p_.J), 4 * (1 + per_sample) * synapses_), kRoom);
    const int64_t fit = max(room / per_synapse / p_.I, int64_t(1));  // rows of weights
    chunk_ = {0, fit < p_.J ? 1 : min(fit / p_.J, p_.S), 0, fit < p_.J ? max(fit / kPad, int64_t(1)) * kPad : p_.J};
    const int64_t size = chunk_.S * min(chunk_.J, p_.J) * p_.I;
    kept_ = take(stretches_ > 1, (stretches_ - 1) * size);
    arriving_ = take(true, size), direct_ = take(is_weighted_, size);
    step_plus_ = take(true, steps_ * max(per_sample, int64_t(1)) * size);
    step_minus_ = take(is_weighted_, steps_ * max(per_sample, int64_t(1)) * size);
    kept_eligibility_ = take(is_eligible_, stretches_ * per_sample * size);
    arriving_eligibility_ = take(is_eligible_, per_sample * size);
    step_weights_ = take(is_eligible_, steps_ * size);
    step_paid_ = take(is_eligible_ && g_.modulation, steps_ * per_sample * size);
  }

  static constexpr int64_t kRoom = int64_t(1) << 18;  // numbers

  Problem<Real> before_the_clamp() const {
    Problem<Real> p = p_;
    p.rule.clamp = Clamp::never;
    p.result = unclamped_;
    p.traces = {nullptr, nullptr, nullptr, nullptr, unclamped_eligibility_};
    return p;
  }

  void follow_both() const {
    Side<Real> pre = pre_side(p_, P_), post = post_side(p_);
    pre.trace = pre.trace_slow = post.trace = post.trace_slow = nullptr;
    pre.read = x_, pre.counts = minus_, pre.slow_counts = slow_;
    post.read = y_, post.counts = plus_, post.amplitude = p_.a_plus;
    follow(pre, p_.pre, stream_);
    follow(post, p_.post, stream_);
  }

  Steps<Real> steps() const {
    return {
        .weight = p_.weight,
        .result = nullptr,
        .T = p_.T,
        .B = p_.B,
        .S = p_.S,
        .J = p_.J,
        .I = p_.I,
        .P = P_,
        .in_packs =
            p_.I % 4 == 0 && are_aligned(4 * sizeof(Real), p_.weight, g_.result, g_.traces.eligibility, g_.weight),
        .x = x_,
        .minus = minus_,
        .slow = slow_,
        .plus = plus_,
        .y = y_,
        .m = is_stepwise_ ? c_ : nullptr,
        .pre_stride = padded(p_.I),
        .post_stride = padded(p_.J),
        .a_minus = p_.a_minus,
        .keep = Real(1 - p_.rule.weight_decay),
        .evaluates_each_step = p_.rule.evaluate_each_step,
        .clamps_each_step = p_.rule.clamp == Clamp::step,
        .clamps_at_the_end = p_.rule.clamp == Clamp::end,
        .bounds = Bounds<Real>(p_.rule),
        .consolidation = {},
    };
  }

  Factor<Real> counted() const { return {nullptr, c_, nullptr, true, 1, p_.B, p_.S}; }
  Factor<Real> nothing_counted() const { return {nullptr, nullptr, nullptr, false, 1, p_.B, p_.S}; }

  void reach(double keep, bool eligible) const {
    const Reach<Real> reach = {p_.T,
                               share_factor_,
                               keep,
                               p_.rule.eligibility.value_or(0),
                               eligible,
                               p_.rule.delayed,
                               c_,
                               eligible ? reach_ : nullptr,
                               eligible ? lasting_ : nullptr};
    if (c_ && p_.B * p_.S > 0)
      ARTSY_LAUNCH(stdp_reach_kernel<Real>, ceil_div(p_.B * p_.S, kThreads), kThreads, 0, stream_, reach);
  }

  // --- Frozen rules

  void differentiate_sums() {
    const double keep = 1 - p_.rule.weight_decay, decay = p_.rule.eligibility.value_or(0);
    const Chunk all = {0, p_.S, 0, p_.J};
    const Real* arriving = g_.result;
    if (clamps_) {
      stdp(before_the_clamp(), forward_, stream_);
      ARTSY_LAUNCH(stdp_pass_kernel<Real>, ceil_div(synapses_, kThreads), kThreads, 0, stream_, synapses_, g_.result,
                   Bounds<Real>(p_.rule), unclamped_);
      arriving = unclamped_;
    }
    reach(keep, is_eligible_);
    matrices(arriving, 1, g_.weight, std::pow(keep, double(p_.T)), nullptr);
    if (is_sensitive_) sensitivity(arriving, false, counted());
    meet({0, 1, 0, p_.T * p_.B, 1}, all, arriving, of_plus_matrix_, of_minus_matrix_, counted(),
         g_.modulation ? nothing_counted() : counted(), false, false);
    if (g_.modulation) {
      pairs();
      if (paid_before_)
        sum({arriving, 0, p_.J * p_.I, 0}, {p_.given.eligibility, synapses_, p_.J * p_.I, 0}, p_.B, p_.S, 1,
            p_.J * p_.I, paid_before_, p_.S, false);
      pay(keep, is_eligible_);
    }
    if (!is_eligible_) return;
    Factor<Real> lasting = nothing_counted();
    lasting.power = lasting_;
    matrices(g_.traces.eligibility, p_.B, g_.given.eligibility, std::pow(decay, double(p_.T)), arriving);
    if (is_sensitive_) sensitivity(g_.traces.eligibility, true, lasting);
    meet({0, p_.B, 1, p_.T, p_.B}, all, g_.traces.eligibility, of_plus_matrix_, of_minus_matrix_, lasting, lasting,
         true, true);
  }

  void matrices(const Real* arriving, int64_t samples, Real* start, double kept, const Real* other) const {
    const Matrices<Real> m = {arriving,
                              p_.weight,
                              samples,
                              p_.S,
                              p_.J * p_.I,
                              Bounds<Real>(p_.rule),
                              of_plus_matrix_,
                              of_minus_matrix_,
                              start,
                              Real(kept),
                              other ? reach_ : nullptr,
                              other};
    if ((m.plus || m.start) && samples * synapses_ > 0)
      ARTSY_LAUNCH(stdp_matrices_kernel<Real>, ceil_div(samples * synapses_, kThreads), kThreads, 0, stream_, m);
  }

  void sensitivity(const Real* arriving, bool per_sample, const Factor<Real>& factor) const {
    if (synapses_ == 0) return;
    const int64_t tiles = p_.S * ceil_div(p_.J, kStepJ<Real>) * ceil_div(p_.I, kStepI);
    ARTSY_LAUNCH(stdp_sensitivity_kernel<Real>, tiles, kThreads, 0, stream_, steps(),
                 Sensitivity<Real>{arriving, per_sample, factor, g_.weight});
  }

  // --- Rules that read the weights

  void differentiate_steps() {
    if (!is_eligible_) reach(1, false);
    const int64_t J = chunk_.J;
    for (int64_t s = 0; s < p_.S; s += chunk_.S)
      for (int64_t j = 0; j < p_.J; j += J)
        differentiate_steps({s, min(chunk_.S, p_.S - s), j, min(J, p_.J - j)}, s + j > 0);
    if (!g_.modulation) return;
    if (!is_eligible_) pairs();
    pay(1, false);
  }

  // adds: to what other chunks have found.
  void differentiate_steps(const Chunk& chunk, bool adds) {
    const int64_t first = (chunk.s * p_.J + chunk.j) * p_.I, size = chunk.S * chunk.J * p_.I;
    const auto kept = [&](int64_t k) { return k == 0 ? p_.weight + first : kept_ + (k - 1) * size; };
    const auto kept_eligibility = [&](int64_t k) {  // the last is free while the steps are taken back
      return is_eligible_ ? kept_eligibility_ + (k - 1) * p_.B * size : nullptr;
    };
    Stretch<Real> stretch = {};
    stretch.chunk = chunk;
    stretch.plus = step_plus_, stretch.minus = step_minus_;
    stretch.direct = p_.rule.evaluate_each_step || !is_weighted_ ? nullptr : direct_;
    stretch.weights = step_weights_, stretch.paid = step_paid_;
    const auto take = [&](int64_t k) {
      stretch.begin = k * steps_, stretch.end = min(p_.T, stretch.begin + steps_);
      stretch.ends = stretch.end == p_.T;
      stretch.from = kept(k);
      stretch.eligibility_from = k > 0                  ? kept_eligibility(k)
                                 : p_.given.eligibility ? p_.given.eligibility + first
                                                        : nullptr;
      stretch.from_by_sample = k > 0 ? size : synapses_;
      retrace(stretch);
    };
    for (int64_t k = 0; k + 1 < stretches_; ++k) {
      stretch.to = kept_ + k * size, stretch.eligibility_to = kept_eligibility(k + 1);
      take(k);
    }
    stretch.to = nullptr, stretch.eligibility_to = kept_eligibility(stretches_);
    stretch.arriving = g_.result + first;
    stretch.arriving_eligibility = is_eligible_ ? g_.traces.eligibility + first : nullptr;
    stretch.arriving_by_sample = synapses_;
    for (int64_t k = stretches_ - 1; k >= 0; --k) {
      stretch.leaving = k == 0 && g_.weight ? g_.weight + first : arriving_;
      const bool is_result = k == 0 && g_.given.eligibility;
      stretch.leaving_eligibility = is_result ? g_.given.eligibility + first : arriving_eligibility_;
      stretch.leaving_by_sample = is_result ? synapses_ : size;
      take(k);
      stretch.arriving = arriving_, stretch.arriving_eligibility = arriving_eligibility_;
      stretch.arriving_by_sample = size;
      const int64_t steps = stretch.end - stretch.begin, row = stretch.begin * p_.B;
      if (!is_eligible_) {
        meet({row, steps, p_.B, p_.B, 1}, chunk, nullptr, step_plus_, step_minus_, counted(),
             g_.modulation ? nothing_counted() : counted(), adds, false);
        continue;
      }
      meet({row, steps * p_.B, 1, 1, 1}, chunk, nullptr, step_plus_, step_minus_, nothing_counted(), nothing_counted(),
           adds, false);
      const int64_t per_subnetwork = chunk.J * p_.I;
      if (g_.modulation)
        sum({step_paid_, size, per_subnetwork, 0}, {}, steps * p_.B, chunk.S, 1, per_subnetwork,
            paid() + row * p_.S + chunk.s, p_.S, chunk.j > 0);
    }
  }

  void retrace(const Stretch<Real>& stretch) const {
    const Chunk& chunk = stretch.chunk;
    if (is_eligible_) {
      const Eligibility<Real> eligibility = {nullptr,         nullptr, Real(*p_.rule.eligibility),
                                             p_.rule.delayed, true,    share_factor_};
      ARTSY_LAUNCH(stdp_retrace_eligible_kernel<Real>, ceil_div(chunk.S * chunk.J * p_.I, kThreads), kThreads, 0,
                   stream_, steps(), stretch, eligibility);
    } else {
      const int64_t tiles = chunk.S * ceil_div(chunk.J, kStepJ<Real>) * ceil_div(p_.I, kStepI);
      ARTSY_LAUNCH(stdp_retrace_kernel<Real>, tiles, kThreads, 0, stream_, steps(), stretch);
    }
  }

  // --- What both kinds of rules do with the matrices

  // minus: nullptr where it is plus; plus: nullptr where it is what arrives.
  void meet(const Groups& groups, const Chunk& chunk, const Real* arriving, const Real* plus, const Real* minus,
            const Factor<Real>& to_pre, const Factor<Real>& to_post, bool adds_to_pre, bool adds_to_post) const {
    const int64_t rows = groups.count * groups.rows;
    if (rows == 0) return;
    if (!plus) plus = arriving;
    if (!minus) minus = plus;
    Meeting<Real> meeting = {groups,  chunk,   nullptr, false, p_.B, p_.S,    p_.I, P_,
                             nullptr, nullptr, 0,       0,     {},   nullptr, 1,    false};
    const auto launch = [&]<bool kToPost>(const Real* from, const Real* matrix, const Real* amplitude, Real sign,
                                          Real* to) {
      const int64_t columns = kToPost ? chunk.J : p_.I, parts = !kToPost && P_ == 1 ? 1 : chunk.S;
      const int64_t blocks = ceil_div(columns, kMeetColumns) * ceil_div(groups.rows, kMeetRows) * groups.count * parts;
      if (!to || blocks == 0) return;
      meeting.from = from, meeting.matrix = matrix, meeting.amplitude = amplitude, meeting.sign = sign, meeting.to = to;
      meeting.in_packs = p_.I % 4 == 0 && are_aligned(4 * sizeof(Real), matrix);
      ARTSY_LAUNCH((stdp_meet_kernel<Real, kToPost>), blocks, kThreads, 0, stream_, meeting);
    };
    meeting.from_stride = padded(p_.J), meeting.to_stride = padded(p_.I);
    meeting.factor = to_pre, meeting.adds = adds_to_pre;
    launch.template operator()<false>(plus_, plus, nullptr, 1, of_x_);
    launch.template operator()<false>(y_, minus, p_.a_minus, -1, of_minus_);
    launch.template operator()<false>(y_, minus, nullptr, -1, of_slow_);
    meeting.from_stride = padded(p_.I), meeting.to_stride = padded(p_.J);
    meeting.factor = to_post, meeting.adds = adds_to_post;
    launch.template operator()<true>(x_, plus, nullptr, 1, of_plus_);
    launch.template operator()<true>(minus_, minus, nullptr, -1, of_y_);
    launch.template operator()<true>(slow_, minus, nullptr, -1, of_y_slow_);
  }

  Real* paid() const { return p_.own_modulation ? g_.modulation : paid_; }

  void pairs() const {
    const int64_t rows = p_.T * p_.B * p_.S;
    const Pairs<Real> pairs = {rows, p_.S,     padded(p_.J), plus_,      y_,    p_.a_minus,
                               c_,   of_plus_, of_y_,        of_y_slow_, paid()};
    if (rows > 0) ARTSY_LAUNCH(stdp_pairs_kernel<Real>, ceil_div(rows, kThreads / 32), kThreads, 0, stream_, pairs);
  }

  void pay(double keep, bool eligible) const {
    const Paid<Real> all = {p_.T,
                            p_.B,
                            p_.S,
                            paid(),
                            paid_before_,
                            keep,
                            p_.rule.eligibility.value_or(0),
                            eligible,
                            p_.rule.delayed,
                            p_.mask,
                            double(p_.share())};
    if (p_.B * p_.S > 0)
      ARTSY_LAUNCH(stdp_paid_kernel<Real>, ceil_div(p_.B * p_.S, kThreads), kThreads, 0, stream_, all);
  }

  void walk_post() const {
    Walk<Real> walk = {};
    walk.side = post_side(p_);
    walk.side.amplitude = p_.a_plus;
    walk.read = of_y_, walk.read_slow = of_y_slow_, walk.by_read = p_.a_minus;
    walk.counts = walk.counts_slow = of_plus_;
    walk.after = g_.traces.post, walk.after_slow = g_.traces.post_slow;
    walk.spikes = g_.post, walk.before = g_.given.post, walk.before_slow = g_.given.post_slow;
    walk.trace = y_, walk.of_amplitude = of_amplitude_, walk.of_by_read = of_by_read_;
    take_back(walk, p_.post);
    const int64_t groups = walk.side.stride / 4;
    const auto sum_up = [&](const Real* found, Real* result) {
      if (result) sum({found, 0, groups, p_.S * groups}, {}, 1, p_.S, p_.B, groups, result, 0, false);
    };
    sum_up(of_amplitude_, g_.a_plus);
    sum_up(of_by_read_, g_.a_minus);
  }

  void walk_pre() const {
    Walk<Real> walk = {};
    walk.side = pre_side(p_, P_);
    walk.read = of_x_;
    walk.counts = of_minus_, walk.counts_slow = of_slow_;
    walk.after = g_.traces.pre, walk.after_slow = g_.traces.pre_slow;
    walk.spikes = g_.pre, walk.before = g_.given.pre, walk.before_slow = g_.given.pre_slow;
    take_back(walk, p_.pre);
  }

  void take_back(Walk<Real> walk, const artsy::stdp::Spikes& spikes) const {
    Side<Real>& side = walk.side;
    const int64_t items = side.B * side.P * side.stride / 4, bytes = 4 * spikes.size(sizeof(Real));
    if (items == 0) return;
    walk.slow = walk_;
    side.in_packs = side.N % 4 == 0 && are_aligned(bytes, static_cast<const char*>(spikes.data)) &&
                    are_aligned(4 * sizeof(Real), side.given_slow, walk.after, walk.after_slow, walk.spikes,
                                walk.before, walk.before_slow);
    if (spikes.bytes)
      ARTSY_LAUNCH((stdp_walk_kernel<Real, uint8_t>), blocks_for(items), kThreads, 0, stream_,
                   static_cast<const uint8_t*>(spikes.data), walk);
    else
      ARTSY_LAUNCH((stdp_walk_kernel<Real, Real>), blocks_for(items), kThreads, 0, stream_,
                   static_cast<const Real*>(spikes.data), walk);
  }

  void sum(const typename Sums<Real>::Operand& a, const typename Sums<Real>::Operand& e, int64_t K, int64_t S,
           int64_t outer, int64_t inner, Real* result, int64_t result_by_k, bool adds) const {
    const Sums<Real> sums = {a, e, S, outer, inner, result, result_by_k, adds};
    if (K * S > 0) ARTSY_LAUNCH(stdp_sum_kernel<Real>, K * S, kThreads, 0, stream_, sums);
  }

  const Problem<Real>& p_;
  const Gradients<Real>& g_;
  Arena arena_;
  const int64_t P_, synapses_;
  const bool is_weighted_, is_stepwise_, is_eligible_, has_slow_, clamps_, is_sensitive_, asks_pre_, asks_post_;
  const Factor<Real> share_factor_;
  cudaStream_t stream_ = {};
  // What the sides read and count, as in Steps; gradients of it; the slow trace's part of what one side counts.
  Real *x_, *minus_, *slow_, *plus_, *y_;
  Real *of_x_, *of_minus_, *of_slow_, *of_plus_, *of_y_, *of_y_slow_, *walk_;
  Real *c_, *reach_, *lasting_;
  Real *of_amplitude_, *of_by_read_, *paid_, *paid_before_;
  Real *unclamped_, *unclamped_eligibility_, *of_plus_matrix_, *of_minus_matrix_;
  char* forward_ = nullptr;

  // Of rules that read the weights.
  int64_t steps_ = 1, stretches_ = 0;
  Chunk chunk_ = {};  // the largest
  Real *kept_ = nullptr, *arriving_ = nullptr, *direct_ = nullptr, *step_plus_ = nullptr, *step_minus_ = nullptr;
  Real *kept_eligibility_ = nullptr, *arriving_eligibility_ = nullptr, *step_weights_ = nullptr, *step_paid_ = nullptr;
};

}  // namespace plasticity

// The bytes of scratch memory that a call takes.
template <class Real>
int64_t stdp_backward_scratch(const artsy::stdp::Problem<Real>& p, const artsy::stdp::Gradients<Real>& g) {
  return plasticity::Backward<Real>(p, g, nullptr).bytes();
}

// The gradients that are asked for; those that arrive are all there.
template <class Real>
void stdp_backward(const artsy::stdp::Problem<Real>& p, const artsy::stdp::Gradients<Real>& g, void* scratch,
                   cudaStream_t stream) {
  plasticity::Backward<Real>(p, g, scratch).launch(stream);
}

}  // namespace artsy::cuda
