// What formulas that are written once for lanes and for a thread of a GPU (numbers.cuh) ask of lanes beside arithmetic.
#pragma once
#include "../common/pair.h"

#define FK_FUNCTION
#define FK_NOINLINE __attribute__((noinline))

namespace fk::FK_ISA {

template <class M>
FK_INLINE M not_(M mask) {
  return ~mask;
}

template <class V>
FK_INLINE Pair<V> log1p_unit(Pair<V> p) {
  return {log1p_unit(p.a), log1p_unit(p.b)};
}

// Numbers one after another, [number][lane]: what a formula reads its parameters from, and works in.
template <class S>
struct Numbers {
  using T = Pair<typename Simd<S>::V>;
  static constexpr int N = 2 * kLanes<S>;
  S* first;

  FK_INLINE T get(int i) const { return load_pair(first + i * N); }
  FK_INLINE void put(int i, T v) const { store_pair(first + i * N, v); }
  FK_INLINE Numbers from(int i) const { return {first + i * N}; }
};

}  // namespace fk::FK_ISA
