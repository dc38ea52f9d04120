// A step that scales and shifts each feature by numbers of its own: as actnorm, by the logarithm of the scale, or by
// the scale itself, whose inverse divides.
#pragma once
#include <cmath>

#include "../common/channel_ladj.h"
#include "step.h"

namespace fk::FK_ISA {

// What channel_ladj.h asks of a call.
struct OfLadj {
  bool inverse;
  const void* grad_ladj;
  int64_t ladj_count, ladj_pixels;
};

template <class S>
struct ScaleStep {
  using V = typename Simd<S>::V;
  using T = Pair<V>;
  const FlowStep& step;
  Pass pass;
  int64_t features;
  OfLadj of_ladj;
  bool divides;
  S ladj;
  S *scale, *before, *after;  // y = (x - before) scale + after, or (x - before) / scale + after
  S* sums;                    // [parts][g, g (x - before)]

  ScaleStep(const FlowArgs& a, const FlowStep& step, const Pass& pass, Arena& arena)
      : step(step),
        pass(pass),
        features(a.features),
        of_ladj{step.inverse, a.grad_ladj, a.rows, 1},
        divides(step.inverse && !step.is_log) {
    const int64_t room = round_up(features, kLanes<S>);
    for (S** to : {&scale, &before, &after}) *to = arena.take<S>(size_t(room));
    sums = pass.backward ? arena.take<S>(2 * pass.parts * LaneSums<S>::size(features)) : nullptr;
    if (arena.counts()) return;
    const S *const given = static_cast<const S*>(step.scale), *const shift = static_cast<const S*>(step.shift);
    double sum = 0;
    for (int64_t i = 0; i < room; ++i) {
      const S value = i < features ? given[i] : S(step.is_log ? 0 : 1), moved = shift && i < features ? shift[i] : S(0);
      scale[i] = step.is_log && step.inverse ? -value : value;
      before[i] = step.inverse ? moved : S(0);
      after[i] = step.inverse ? S(0) : moved;
      sum += step.is_log ? double(value) : std::log(std::abs(double(value)));
    }
    for (int64_t i = 0; step.is_log && i < room; i += kLanes<S>) store(scale + i, exp_(load<V>(scale + i)));
    ladj = S(step.inverse ? -sum : sum);
  }

  struct Room {};
  FK_INLINE static T splat_pair(S v) { return {splat<V>(v), splat<V>(v)}; }

  void fwd(const Room&, const RowTile& rows, S* x, S* to_ladj) const {
    const int64_t blocks = rows.blocks<S>();
    fill_lanes(ladj, blocks, to_ladj);
    for (int64_t i = 0; i < features; ++i) {
      const T by = splat_pair(scale[i]), minus = splat_pair(before[i]), plus = splat_pair(after[i]);
      S* at = x + step.in[i] * kRowBlock<S>;
      for (int64_t s = 0; s < blocks; ++s, at += features * kRowBlock<S>) {
        const T v = load_pair(at) - minus;
        store_pair(at, divides ? v / by : v * by + plus);
      }
    }
  }

  LaneSums<S> sum(int part, bool of_scale) const {
    return {sums + (2 * part + of_scale) * LaneSums<S>::size(features), features};
  }

  void clear(int part, bool) const {
    for (const bool of_scale : {false, true}) sum(part, of_scale).clear();
  }

  void bwd(const Room&, const RowTile& rows, int part, bool, S* x, const S*, const S*, S* g) const {
    const int64_t blocks = rows.blocks<S>();
    const LaneSums<S> of_shift = sum(part, false), of_scale = sum(part, true);
    clear_past_end(rows, features, g);
    clear_past_end(rows, features, x);
    for (int64_t i = 0; i < features; ++i) {
      const T by = splat_pair(scale[i]), minus = splat_pair(before[i]);
      int64_t at = step.in[i] * kRowBlock<S>;
      for (int64_t s = 0; s < blocks; ++s, at += features * kRowBlock<S>) {
        const T g_y = load_pair(g + at);
        if (step.grad_shift) of_shift.add(i, g_y);
        if (step.grad_scale) of_scale.add(i, g_y * (load_pair(x + at) - minus));
        store_pair(g + at, divides ? g_y / by : g_y * by);
      }
    }
  }

  void finish() const {
    const double from_ladj = step.grad_scale ? ladj_gradient<S>(of_ladj) : 0;
    for (int64_t i = 0; i < features; ++i) {
      double g = 0, gx = 0;
      for (int part = 0; part < pass.parts; ++part) {
        if (step.grad_shift) g += sum(part, false).total(i);
        if (step.grad_scale) gx += sum(part, true).total(i);
      }
      const double s = double(scale[i]);
      if (step.grad_shift) static_cast<S*>(step.grad_shift)[i] = S(!step.inverse ? g : divides ? -g / s : -s * g);
      if (!step.grad_scale) continue;
      S& to = static_cast<S*>(step.grad_scale)[i];
      if (step.is_log)
        to = S((step.inverse ? -s : s) * gx + from_ladj);
      else
        to = S((divides ? -gx / (s * s) : gx) + from_ladj / s);
    }
  }
};

}  // namespace fk::FK_ISA
