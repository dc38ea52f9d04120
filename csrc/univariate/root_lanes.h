// The root of an increasing function in every lane of two vectors, lanes together.
#pragma once
#include "numbers_lanes.h"

#include "root.h"

namespace fk::FK_ISA {

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
