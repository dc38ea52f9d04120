// The root of an increasing function by one thread, within a bracket whose ends are looked at only when a step leads
// there: where y is beyond an end, the end is the answer.
#pragma once
#include "../univariate/root.cuh"

namespace fk::cuda {

template <class S>
struct Search : Bracket<S> {
  S first_low, first_high, slope_at_best;
  bool low_seen, high_seen;

  __device__ __forceinline__ void start(S goal, S l, S h, S first) {
    Bracket<S>::start(goal, l, h, first);
    first_low = l, first_high = h, slope_at_best = 0;
    low_seen = high_seen = false;
  }

  // off: how far f is above the target at `at`, and its slope there.
  __device__ __forceinline__ void step(S off, S slope) {
    if (!this->active) return;
    const S here = this->at, size = abs_(off), newton = here - off / slope;
    const bool above = off > 0, nearer = size < this->least;
    const bool ended = above ? here == first_low : off <= 0 && here == first_high;
    high_seen |= above, low_seen |= off <= 0;
    this->update(off, slope, [&](S low, S high) {
      if (newton > high && !high_seen) return high;
      if (newton < low && !low_seen) return low;
      return low + (high - low) * S(0.5);
    });
    if (nearer || off != off) slope_at_best = slope;
    if (off != off) this->best = off;
    // What is left are the roundings of f, whose terms are larger than it is.
    const bool settled = !nearer && size <= 16 * Bracket<S>::kUlp * (1 + abs_(this->target));
    if (ended) this->best = here, slope_at_best = slope;
    if (ended || settled) this->active = false, this->at = here;
  }
};

}  // namespace fk::cuda
