// What a network sees in place of a feature x: l x + a sin(s x) + b cos(s x) + c, of one value; whoever includes this
// names FK_ISA and FK_INLINE.
#pragma once
#include <math.h>

namespace fk::FK_ISA {

FK_INLINE float sin_(float a) { return sinf(a); }
FK_INLINE double sin_(double a) { return sin(a); }
FK_INLINE float cos_(float a) { return cosf(a); }
FK_INLINE double cos_(double a) { return cos(a); }

template <class S>
struct PeriodicFeature {
  S linear, of_sin, of_cos, frequency, offset;

  bool is_line() const { return of_sin == 0 && of_cos == 0; }
  FK_INLINE S operator()(S x) const {
    return linear * x + of_sin * sin_(frequency * x) + of_cos * cos_(frequency * x) + offset;
  }
};

}  // namespace fk::FK_ISA
