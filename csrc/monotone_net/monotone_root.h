// The root of an increasing function in every lane, by Newton's steps within a bracket whose ends are looked at only
// when a step leads there. Where y is beyond an end, the end is the answer.
#pragma once
#include "../common/pair.h"

namespace fk::FK_ISA {

template <class V>
struct Seeker {
  using S = typename ScalarOf<V>::S;
  using I = typename Simd<S>::I;
  static constexpr S kUlp = sizeof(S) == 4 ? S(0x1p-23) : S(0x1p-52);

  V target, low, high, at;  // at: the point to look at next
  V first_low, first_high, best, least, before, slope_at_best;
  I low_seen, high_seen, active;

  FK_INLINE void start(V goal, V l, V h, V first) {
    target = goal, first_low = low = l, first_high = high = h, at = best = first;
    least = splat<V>(__builtin_inff());
    slope_at_best = V{};
    before = h - l;
    low_seen = high_seen = I{};
    active = goal == goal;
  }

  // off: how far f is above the target at `at`, and its slope there. A lane that has its root rests.
  FK_INLINE void update(V off, V slope) {
    const V size = abs_(off);
    const I nearer = (size < least) & active, above = (off > 0) & active, below = (off <= 0) & active;
    // An end beyond which the target lies is the answer also where the map is flat before it, and it is no nearer.
    const I ended = (below & (at == first_high)) | (above & (at == first_low)), better = nearer | ended;
    best = select(better, at, select((off != off) & active, off, best));
    slope_at_best = select(better, slope, slope_at_best);
    low = select(below, at, low), low_seen |= below;
    high = select(above, at, high), high_seen |= above;
    V next = at - off / slope;
    const I good = (next >= low) & (next <= high) & (2 * abs_(next - at) <= abs_(before));
    if (any_(~good & active)) {
      V other = low + (high - low) * S(0.5);
      other = select((next > high) & ~high_seen, high, other);
      other = select((next < low) & ~low_seen, low, other);
      next = select(good, next, other);
    }
    before = next - at;
    const I there = ended | (abs_(before) <= kUlp * abs_(at)) | (~nearer & (size <= 16 * kUlp * (1 + abs_(target)))) |
                    (off == 0) | (off != off);
    least = select(nearer, size, least);
    active &= ~there;
    at = select(active, next, at);
  }
};

}  // namespace fk::FK_ISA
