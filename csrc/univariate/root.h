// The root of an increasing function: Newton's steps within a bracket. Written once for a value type V: a SIMD vector,
// of which each lane has its own root, float or double in CUDA. Included after numbers_lanes.h or numbers.cuh.
#pragma once

namespace fk::FK_ISA {

// f(low) <= target <= f(high) in every lane. A lane that has found its root rests, so that it does not see how long its
// neighbours take.
template <class V>
struct Bracket {
  using S = typename ScalarOf<V>::S;
  using I = decltype(V{} < V{});
  static constexpr S kUlp = sizeof(S) == 4 ? S(0x1p-23) : S(0x1p-52);

  V target, low, high, at;  // at: the point to look at next
  V best, least, before;
  I active;

  FK_INLINE void start(V goal, V l, V h, V first) {
    target = goal, low = l, high = h, at = best = first;
    least = splat<V>(__builtin_inff());
    before = h - l;
    active = goal == goal;
  }

  // off: how far f is above the target at `at`, and its slope there. middle(low, high): where to halve the bracket.
  // What is kept is the point of the least residual: rounding makes f a staircase near the root.
  template <class Middle>
  FK_INLINE void update(V off, V slope, const Middle& middle) {
    const V size = abs_(off);
    const I nearer = (size < least) & active, above = (off > 0) & active, below = (off <= 0) & active;
    best = select(nearer, at, best);
    low = select(below, at, low);
    high = select(above, at, high);
    V next = at - off / slope;
    // Newton's step must stay inside and be half of the one before.
    const I good = (next >= low) & (next <= high) & (2 * abs_(next - at) <= abs_(before));
    if (any_(not_(good) & active)) next = select(good, next, middle(low, high));
    before = next - at;
    // There, or as near as rounding lets one come: no step improves on what is a few ulps off.
    const I there = (abs_(before) <= kUlp * abs_(at)) | (not_(nearer) & (size <= 64 * kUlp * abs_(target))) |
                    (off == 0) | (off != off);
    least = select(nearer, size, least);
    active = active & not_(there);
    at = select(active, next, at);
  }
};

}  // namespace fk::FK_ISA
