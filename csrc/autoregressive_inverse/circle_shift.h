// Shifts a value by half a period: treats a spline's box [left, right) as a circle. Whoever includes this names FK_ISA
// and FK_INLINE.
#pragma once
#include <math.h>

#include "autoregressive_inverse.h"

namespace fk::FK_ISA {

FK_INLINE float floor_(float a) { return floorf(a); }
FK_INLINE double floor_(double a) { return floor(a); }

// Into [middle - by, middle + by), from wherever v is: linear tails leave values outside of the box.
template <class S>
FK_INLINE S shifted(const CircleShift& shift, S v) {
  return v - S(shift.by) * (2 * floor_((v - S(shift.middle)) * S(shift.inv_length)) + 1);
}

}  // namespace fk::FK_ISA
