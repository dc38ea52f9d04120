// The root of an increasing function, by one thread.
#pragma once
#include "numbers.cuh"

#include "root.h"

namespace fk::cuda {

// value(at, &f, &slope). Threads of a warp wait for the slowest, and see nothing of it.
template <class S, class Value, class Middle>
FK_INLINE S find_root(S target, S low, S high, S first, const Value& value, const Middle& middle) {
  Bracket<S> a;
  a.start(target, low, high, first);
  for (int step = 0; step < 256 && a.active; ++step) {
    S f, slope;
    value(a.at, &f, &slope);
    a.update(f - target, slope, middle);
  }
  return target == target ? a.best : target;
}

}  // namespace fk::cuda
