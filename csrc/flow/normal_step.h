// A step that leaves x as it is, and whose ladj is the log-density of the standard normal there: the base of a flow.
#pragma once
#include "../univariate/map_cpu.h"
#include "step.h"

namespace fk::FK_ISA {

template <class S>
struct NormalStep {
  using T = Pair<typename Simd<S>::V>;
  int64_t features;

  NormalStep(const FlowArgs& a, const FlowStep&, const Pass&, Arena&) : features(a.features) {}

  struct Room {};

  void fwd(const Room&, const RowTile& rows, const S* x, S* ladj) const {
    constexpr double half_log_2pi = 0.91893853320467274178;
    for (int64_t s = 0; s < rows.blocks<S>(); ++s, ladj += kRowBlock<S>) {
      LadjSum<T> sum;
      for (int64_t i = 0; i < features; ++i, x += kRowBlock<S>) {
        const T v = load_pair(x);
        sum.add(v * v);
      }
      // What an infinite square has lost is no number.
      const T total = sum.total(),
              finite = {select(total.a == total.a, total.a, sum.sum.a), select(total.b == total.b, total.b, sum.sum.b)};
      store_pair(ladj, finite * S(-0.5) - S(half_log_2pi * double(features)));
    }
  }

  void clear(int, bool) const {}

  void bwd(const Room&, const RowTile& rows, int, bool, const S* x, const S*, const S* ladj, S* g) const {
    S* const gradients = g;
    for (int64_t s = 0; s < rows.blocks<S>(); ++s, ladj += kRowBlock<S>) {
      const T by = load_pair(ladj);
      for (int64_t i = 0; i < features; ++i, x += kRowBlock<S>, g += kRowBlock<S>)
        store_pair(g, load_pair(g) - by * load_pair(x));
    }
    clear_past_end(rows, features, gradients);
  }

  void finish() const {}
};

}  // namespace fk::FK_ISA
