// The root of an increasing function in every lane: Newton's steps within a bracket, lanes together.
#pragma once
#include "../common/pair.h"

namespace fk::FK_ISA {

// f(low) <= target <= f(high) in every lane. A lane that has found its root rests, so that it does not see how long its
// neighbours take.
template <class V>
struct Bracket {
  using S = typename ScalarOf<V>::S;
  using I = typename Simd<S>::I;
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
    if (any_(~good & active)) next = select(good, next, middle(low, high));
    before = next - at;
    // There, or as near as rounding lets one come: no step improves on what is a few ulps off.
    const I there =
        (abs_(before) <= kUlp * abs_(at)) | (~nearer & (size <= 64 * kUlp * abs_(target))) | (off == 0) | (off != off);
    least = select(nearer, size, least);
    active &= ~there;
    at = select(active, next, at);
  }
};

// value(at, &f, &slope) of a pair of vectors.
template <class V, class Value, class Middle>
FK_INLINE Pair<V> find_root(Pair<V> target, Pair<V> low, Pair<V> high, Pair<V> first, const Value& value,
                            const Middle& middle) {
  Bracket<V> a, b;
  a.start(target.a, low.a, high.a, first.a);
  b.start(target.b, low.b, high.b, first.b);
  // A step that is not Newton's halves the bracket: never as many, but for a function that is not one.
  for (int step = 0; step < 256 && (any_(a.active) || any_(b.active)); ++step) {
    Pair<V> f, slope;
    value(Pair<V>{a.at, b.at}, &f, &slope);
    // Here, where no branch lies between: or the compiler fuses the last product of f into one of the two differences
    // alone, and a row's bits depend on its place.
    const Pair<V> off = f - target;
    a.update(off.a, slope.a, middle);
    b.update(off.b, slope.b, middle);
  }
  return select(Pair<decltype(a.active)>{target.a == target.a, target.b == target.b}, Pair<V>{a.best, b.best}, target);
}

}  // namespace fk::FK_ISA
