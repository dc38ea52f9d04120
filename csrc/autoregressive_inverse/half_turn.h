// Half a turn of the circle that a spline's box is, of one value; whoever includes this names FK_ISA and FK_INLINE.
#pragma once
#include <math.h>

#include "autoregressive_inverse.h"

namespace fk::FK_ISA {

FK_INLINE float floor_(float a) { return floorf(a); }
FK_INLINE double floor_(double a) { return floor(a); }

// Into [middle - by, middle + by), from wherever v is: linear tails leave values outside of the box.
template <class S>
FK_INLINE S turned(const HalfTurn& turn, S v) {
  return v - S(turn.by) * (2 * floor_((v - S(turn.middle)) * S(turn.turns)) + 1);
}

}  // namespace fk::FK_ISA
