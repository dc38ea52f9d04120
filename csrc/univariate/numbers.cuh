// What numbers_lanes.h is to the CPU, of one thread.
#pragma once
#include "../common/scalar.cuh"

#define FK_FUNCTION __host__ __device__
#define FK_NOINLINE __host__ __device__

namespace fk::cuda {

FK_INLINE bool not_(bool on) { return !on; }

// `apart` from each other.
template <class S>
struct Numbers {
  using T = S;
  S* first;
  int apart;

  FK_INLINE S get(int i) const { return first[i * apart]; }
  FK_INLINE void put(int i, S v) const { first[i * apart] = v; }
  FK_INLINE Numbers from(int i) const { return {first + i * apart, apart}; }
};

}  // namespace fk::cuda
