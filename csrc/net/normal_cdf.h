// The normal distribution function in SIMD lanes.
#pragma once
#include "../common/simd.h"

#include "../common/normal_tail.h"

namespace fk::FK_ISA {

inline constexpr double kErfc[26] = {FK_ERFC};

template <class V>
FK_INLINE NormalTail<V> normal_tail(V v) {
  return normal_tail(v, kErfc);
}

// The normal distribution function, from the smaller of its two tails.
template <class V>
FK_INLINE V normal_cdf(V v) {
  using S = typename ScalarOf<V>::S;
  const NormalTail<V> n = normal_tail(v);
  const V tail = S(0.5) * n.t * exp_(n.rest - n.z * n.z);
  return select(v > 0, 1 - tail, tail);
}

}  // namespace fk::FK_ISA
