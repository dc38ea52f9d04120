// A tile's whole way. Steps that every row chooses for itself: the rules, and their numbers, are those of
// flowkernels/ops/ode_flow/mesh.py.
#pragma once
#include "solve.h"

namespace fk::FK_ISA {

template <class S>
struct OdeTile : OdeSteps<S> {
  using Base = OdeSteps<S>;
  using T = PairOf<S>;
  using Base::a, Base::blocks, Base::field, Base::h, Base::ladj, Base::lane, Base::moved, Base::stage, Base::t;
  using Base::f_width, Base::table, Base::traced, Base::x;
  static constexpr int R = kRowBlock<S>;

  using Base::Base;

  // From x at a.t0 to x and ladj at a.t1. With a record it is what `back` asks for.
  void solve(const RowTile& rows, Record<S>* record) {
    fill(ladj, S(0));
    Base::adapts(a) ? own_steps(rows, record) : Base::equal_steps(rows, record);
  }

 private:
  using Base::advance, Base::evaluate, Base::fill, Base::remember, Base::row_times;

  static constexpr double kSafety = 0.9, kShrinks = 0.2, kGrows = 10, kFirst = 0.1, kShare = 0.05, kLadjScale = 0.01;
  static constexpr int kRounding = 4;
  static constexpr S kEps = sizeof(S) == 4 ? S(0x1p-23) : S(0x1p-52);

  void own_steps(const RowTile& rows, Record<S>* record) {
    const S end = S(a.t1), whole = S(a.t1 - a.t0);
    const S farthest = S(fmax(fabs(a.t1 - a.t0), fmax(fabs(a.t0), fabs(a.t1))));
    S *const done = lane[0], *const takes = lane[1], *const error = lane[2];
    const int64_t lanes = blocks() * R;
    fill(t, S(a.t0)), fill(h, S(kFirst) * whole), fill(done, S(0));
    Stage<S>&first = stage[0], &last = stage[table.stages];
    evaluate(rows, 0, 0, true);
    int64_t left = lanes;
    for (int64_t tried = 0; tried < a.steps && left > 0; ++tried) {
      for (int64_t l = 0; l < lanes; ++l) {
        const S rest = end - t[l];
        takes[l] = fabs(h[l]) * S(1.01) >= fabs(rest) ? S(2) : S(1);  // 2: this step would be the last
        h[l] = done[l] != 0 ? S(0) : takes[l] == 2 ? rest : h[l];
      }
      for (int i = 1; i < table.stages; ++i) evaluate(rows, i, 0, true);
      advance(x, ladj, moved, traced, true);
      look_behind(rows, last);
      measure(error);
      bool any = false;
      S* const kept = record ? record->next() : nullptr;
      if (kept) remember(kept);
      S* const kept_h = kept ? kept + lanes * (a.features + 1) : nullptr;
      for (int64_t l = 0; l < lanes; ++l) {
        if (done[l] != 0) {
          takes[l] = 0;
          continue;
        }
        const bool finite = error[l] - error[l] == 0, accepted = finite && error[l] <= 1;
        double factor = kShrinks;
        if (finite) {
          factor = kSafety * pow(fmax(double(error[l]), 1e-10), -0.2);
          factor = factor < kShrinks ? kShrinks : factor > kGrows ? kGrows : factor;
        }
        const bool is_short = !accepted && fabs(double(h[l])) * factor < 16 * double(kEps) * double(farthest);
        const bool failing = is_short || is_hopeless(first, l);
        const S length = failing ? S(__builtin_nan("")) : accepted ? h[l] : S(0);
        any |= length != 0;
        if (kept) kept_h[l] = length;
        const bool arrives = accepted && takes[l] == 2;
        t[l] = accepted ? arrives ? end : t[l] + h[l] : t[l];
        takes[l] = accepted && !failing;
        if (failing) give_up(l);
        if (failing || arrives) done[l] = 1, --left;
        h[l] = failing || arrives ? S(0) : S(double(h[l]) * factor);
      }
      if (kept && !any) record->forget();
      take_over(takes, last);
    }
    if (left == 0) return;
    fill(h, S(0));
    for (int64_t l = 0; l < lanes; ++l)
      if (done[l] == 0) give_up(l), h[l] = S(__builtin_nan(""));
    if (record) remember(record->next());
  }

  // f and its trace behind a step.
  void look_behind(const RowTile& rows, const Stage<S>& s) const {
    for (int64_t b = 0; b < blocks(); ++b)
      memcpy(s.in + b * field.in_width() * R, moved + b * a.features * R, size_t(a.features * R) * sizeof(S));
    row_times(s.in, 1);
    field.evaluate(rows, s, true);
  }

  // The largest error of each row, in units of what is allowed of it; NaN where anything is not finite.
  void measure(S* error) const {
    const S rtol = S(kShare * a.rtol), atol = S(kShare * a.atol);
    for (int64_t b = 0; b < blocks(); ++b) {
      const T step = load_pair(h + b * R);
      const auto off = [&](auto of_stage) {
        T sum = {};
        for (int i = 0; i <= table.stages; ++i)
          if (kDopri5Error[i] != 0) sum = sum + (step * S(kDopri5Error[i])) * of_stage(i);
        return sum;
      };
      T size = {}, worst = {}, bad = {};
      for (int64_t d = 0; d < a.features; ++d) {
        const int64_t at = (b * a.features + d) * R;
        size = max_(size, max_(abs_(load_pair(x + at)), abs_(load_pair(moved + at))));
      }
      const T floor = S(kRounding) * kEps * size;
      for (int64_t d = 0; d < a.features; ++d) {
        const int64_t at = (b * a.features + d) * R;
        const T before = load_pair(x + at), after = load_pair(moved + at);
        const T e = off([&](int i) { return load_pair(stage[i].f + (b * f_width() + d) * R); });
        const T allowed = max_(atol + rtol * max_(abs_(before), abs_(after)), floor);
        // 0 of nothing, as at rest where nothing is allowed.
        worst = max_(worst, select(e == S(0), T{}, abs_(e) / allowed));
        bad = bad + (S(0) * e + S(0) * after);
      }
      const T e = off([&](int i) { return load_pair(stage[i].trace + b * R); });
      const T of_ladj = max_(abs_(load_pair(ladj + b * R)), abs_(load_pair(traced + b * R)));
      const T allowed =
          max_(atol + S(kLadjScale) * rtol * of_ladj, S(kLadjScale) * max_(floor, S(kRounding) * kEps * of_ladj));
      worst = max_(worst, select(e == S(0), T{}, S(kLadjScale) * abs_(e) / allowed));
      store_pair(error + b * R, worst + (bad + S(0) * e));
    }
  }

  // Whether the slope where a row stands is no number: no step is short enough.
  bool is_hopeless(const Stage<S>& at, int64_t l) const {
    const int64_t b = l / R, i = l % R;
    S sum = S(0) * at.trace[l];
    for (int64_t d = 0; d < a.features; ++d) sum += S(0) * at.f[(b * f_width() + d) * R + i];
    return sum != 0;
  }

  void give_up(int64_t l) const {
    const int64_t b = l / R, i = l % R;
    const S none = S(__builtin_nan(""));
    for (int64_t d = 0; d < a.features; ++d) x[(b * a.features + d) * R + i] = none;
    ladj[l] = none;
  }

  // Rows whose step was taken stand behind it, with the slope there.
  void take_over(const S* takes, const Stage<S>& last) const {
    for (int64_t b = 0; b < blocks(); ++b) {
      const auto taken = load_pair(takes + b * R) > S(0);
      const auto put = [&](S* to, const S* from) { store_pair(to, select(taken, load_pair(from), load_pair(to))); };
      for (int64_t d = 0; d < a.features; ++d) {
        put(x + (b * a.features + d) * R, moved + (b * a.features + d) * R);
        put(stage[0].f + (b * f_width() + d) * R, last.f + (b * f_width() + d) * R);
      }
      put(ladj + b * R, traced + b * R), put(stage[0].trace + b * R, last.trace + b * R);
    }
  }
};

}  // namespace fk::FK_ISA
