// Steps of a tile of rows from one time to the other, and the way back through each.
#pragma once
#include <math.h>
#include <new>

#include "field.h"

namespace fk::FK_ISA {

// What backward keeps of the steps of a tile while it runs: so many numbers each. (No std::vector: the linker may take
// one that was compiled for another instruction set.)
template <class S>
class Record {
 public:
  explicit Record(int64_t numbers) : step_(numbers) {}
  Record(const Record&) = delete;
  ~Record() { ::operator delete(data_); }
  void clear() { used_ = 0; }
  void forget() { --used_; }  // the last
  int64_t count() const { return used_; }
  S* operator[](int64_t i) const { return data_ + i * step_; }
  S* next() {
    if (used_ == room_) {
      const int64_t more = room_ ? 2 * room_ : 32;
      S* const grown = static_cast<S*>(::operator new(size_t(more * step_) * sizeof(S)));
      if (data_) memcpy(grown, data_, size_t(used_ * step_) * sizeof(S));
      ::operator delete(data_);
      data_ = grown, room_ = more;
    }
    return (*this)[used_++];
  }

 private:
  S* data_ = nullptr;
  int64_t step_, used_ = 0, room_ = 0;
};

template <class S>
struct OdeSteps {
  static constexpr int R = kRowBlock<S>;
  using T = PairOf<S>;
  const OdeArgs& a;
  const Tableau& table;
  FieldTile<S> field;
  Stage<S> stage[kMostStages + 1];  // forward they share all but f and the trace
  S *x, *moved;                     // [features]
  S *ladj, *traced, *t, *h;         // [1] each, in every block
  S* lane[3];                       // of what is decided row by row
  // Backward: gradients of x behind a step, and of what enters each stage; of f [last width], ladj and the trace.
  S *gx, *g_at[kMostStages], *gf, *g_ladj, *g_trace;

  static bool adapts(const OdeArgs& a) { return a.solver == OdeSolver::dopri5; }

  OdeSteps(const OdeNet<S>& net, int64_t blocks, bool backward, Arena& arena)
      : a(net.args), table(tableau_of(a.solver)), field(net, blocks, backward, arena) {
    const auto take = [&](int64_t n) { return arena.take<S>(size_t(n * blocks * R)); };
    const int n_stages = table.stages + adapts(a);
    for (int i = 0; i < n_stages; ++i) {
      if (i == 0 || (backward && i < table.stages)) {
        stage[i] = field.stage(arena, backward && needs_input(a.activation));
        continue;
      }
      stage[i] = stage[0];
      stage[i].f = take(field.width(a.n - 1)), stage[i].trace = take(1);
    }
    x = take(a.features), moved = take(a.features);
    ladj = take(1), traced = take(1), t = take(1), h = take(1);
    for (S*& of : lane) of = take(1);
    if (!backward) return;
    gx = take(a.features), gf = take(field.width(a.n - 1)), g_ladj = take(1), g_trace = take(1);
    for (int i = 0; i < table.stages; ++i) g_at[i] = take(a.features);
  }

  static int64_t widths(const OdeArgs& a, bool backward) {
    const int64_t stages = tableau_of(a.solver).stages;
    return FieldTile<S>::widths(a, backward) + (backward ? stages : 1) * FieldTile<S>::stage_widths(a) +
           (stages + 1) * (backward ? 2 : 1) * a.features;
  }
  // Of a record: x, t and h.
  int64_t recorded(int64_t blocks) const { return (a.features + 2) * blocks * R; }

  int64_t blocks() const { return field.blocks; }
  int64_t f_width() const { return field.width(a.n - 1); }

  // From x at a.t0 to x and ladj at a.t1, by equal steps. With a record ladj is not made, nor the last step taken.
  void equal_steps(const RowTile& rows, Record<S>* record) {
    fill(h, S((a.t1 - a.t0) / double(a.steps)));
    for (int64_t k = 0; k < a.steps; ++k) {
      if (record) remember(record->next());
      if (record && k == a.steps - 1) return;
      for (int i = 0; i < table.stages; ++i) evaluate(rows, i, k, !record);
      advance(x, ladj, x, ladj, !record);
    }
  }

  // The gradients of a step that starts at what is recorded: gx behind it becomes that in front of it.
  void back(const RowTile& rows, const S* from, int64_t k, const Sums<S>* sums) {
    const int64_t of_x = blocks() * a.features * R, of_one = blocks() * R;
    memcpy(x, from, size_t(of_x) * sizeof(S));
    memcpy(t, from + of_x, size_t(of_one) * sizeof(S)), memcpy(h, from + of_x + of_one, size_t(of_one) * sizeof(S));
    for (int i = 0; i < table.stages; ++i) evaluate(rows, i, k, false);
    for (int i = table.stages - 1; i >= 0; --i) {
      for (int64_t b = 0; b < blocks(); ++b) {
        const T step = load_pair(h + b * R), weight = step * S(table.b[i]);
        store_pair(g_trace + b * R, weight * load_pair(g_ladj + b * R));
        for (int64_t d = 0; d < a.features; ++d) {
          const int64_t at = (b * a.features + d) * R;
          T sum = weight * load_pair(gx + at);
          for (int j = i + 1; j < table.stages; ++j)
            if (table.a[j][i] != 0) sum = sum + (step * S(table.a[j][i])) * load_pair(g_at[j] + at);
          store_pair(gf + (b * f_width() + d) * R, sum);
        }
      }
      field.back(rows, stage[i], gf, g_trace, g_at[i], sums);
    }
    for (int64_t at = 0; at < of_x; at += R) {
      T sum = load_pair(gx + at);
      for (int i = table.stages - 1; i >= 0; --i) sum = sum + load_pair(g_at[i] + at);
      store_pair(gx + at, sum);
    }
  }

 protected:
  void fill(S* of, S value) const {
    for (int64_t i = 0; i < blocks() * R; ++i) of[i] = value;
  }
  void remember(S* to) const {
    const int64_t of_x = blocks() * a.features * R, of_one = blocks() * R;
    memcpy(to, x, size_t(of_x) * sizeof(S));
    memcpy(to + of_x, t, size_t(of_one) * sizeof(S)), memcpy(to + of_x + of_one, h, size_t(of_one) * sizeof(S));
  }

  // Stage i of a step from x; k: which of equal steps it is.
  void evaluate(const RowTile& rows, int i, int64_t k, bool with_trace) const {
    const int64_t in_width = field.in_width();
    for (int64_t b = 0; b < blocks(); ++b) {
      T of[kMostStages];
      for (int j = 0; j < i; ++j) of[j] = load_pair(h + b * R) * S(table.a[i][j]);
      for (int64_t d = 0; d < a.features; ++d) {
        T v = load_pair(x + (b * a.features + d) * R);
        for (int j = 0; j < i; ++j)
          if (table.a[i][j] != 0) v = v + of[j] * load_pair(stage[j].f + (b * f_width() + d) * R);
        store_pair(stage[i].in + (b * in_width + d) * R, v);
      }
    }
    adapts(a) ? row_times(stage[i].in, table.c[i]) : equal_times(stage[i].in, double(k) + table.c[i]);
    field.evaluate(rows, stage[i], with_trace);
  }

  // What the first layer sees of time, so many equal steps from the start.
  void equal_times(S* in, double steps) const {
    const double at = a.t0 + (a.t1 - a.t0) / double(a.steps) * steps;
    const auto put = [&](int64_t j, double v) {
      for (int64_t b = 0; b < blocks(); ++b)
        store_pair(in + (b * field.in_width() + a.features + j) * R, both<T>(S(v)));
    };
    if (a.time == OdeTime::concat) put(0, at);
    if (a.time != OdeTime::sinusoidal) return;
    for (int64_t k = 0; k < a.frequencies; ++k) {
      const double angle = at * (M_PI * double(k + 1));
      put(k, cos(angle)), put(a.frequencies + k, sin(angle));
    }
  }
  // The same of each row, at t + c h: one angle, the others by turning it.
  void row_times(S* in, double c) const {
    for (int64_t b = 0; b < blocks(); ++b) {
      S* const to = in + (b * field.in_width() + a.features) * R;
      const T at = load_pair(t + b * R) + load_pair(h + b * R) * S(c);
      if (a.time == OdeTime::concat) store_pair(to, at);
      if (a.time != OdeTime::sinusoidal) continue;
      alignas(64) S angle[R], cosine[R], sine[R];
      store_pair(angle, at);
      for (int l = 0; l < R; ++l) {
        const double v = M_PI * double(angle[l]);
        cosine[l] = S(cos(v)), sine[l] = S(sin(v));
      }
      const T c1 = load_pair(cosine), s1 = load_pair(sine);
      T ck = c1, sk = s1;
      for (int64_t k = 0; k < a.frequencies; ++k) {
        store_pair(to + k * R, ck), store_pair(to + (a.frequencies + k) * R, sk);
        const T next = ck * c1 - sk * s1;
        sk = sk * c1 + ck * s1, ck = next;
      }
    }
  }

  // What comes behind a step.
  void advance(const S* from, const S* from_ladj, S* to, S* to_ladj, bool with_trace) const {
    for (int64_t b = 0; b < blocks(); ++b) {
      T of[kMostStages];
      for (int i = 0; i < table.stages; ++i) of[i] = load_pair(h + b * R) * S(table.b[i]);
      for (int64_t d = 0; d < a.features; ++d) {
        const int64_t at = (b * a.features + d) * R;
        T v = load_pair(from + at);
        for (int i = 0; i < table.stages; ++i)
          if (table.b[i] != 0) v = v + of[i] * load_pair(stage[i].f + (b * f_width() + d) * R);
        store_pair(to + at, v);
      }
      if (!with_trace) continue;
      T v = {};
      for (int i = 0; i < table.stages; ++i)
        if (table.b[i] != 0) v = v + of[i] * load_pair(stage[i].trace + b * R);
      store_pair(to_ladj + b * R, load_pair(from_ladj + b * R) + v);
    }
  }
};

}  // namespace fk::FK_ISA
