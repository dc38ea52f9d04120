// Division by a number that is the same for a whole launch, as a product and a shift: a GPU divides 64-bit integers by
// a call of some hundred instructions.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

namespace fk::cuda {

// With 2^(l-1) < d <= 2^l and m = ceil(2^(63+l) / d), which fits 64 bits: floor(n m / 2^(63+l)) is floor(n / d) for
// every n < 2^63, as m d - 2^(63+l) < d <= 2^l (Granlund and Montgomery 1994).
struct Divisor {
  uint64_t d = 1, m = 0;
  int shift = 0;  // l - 1

  Divisor() = default;
  explicit Divisor(int64_t divisor) : d(uint64_t(divisor)) {  // from 1 on
    if (d == 1) return;
    while (shift < 62 && (uint64_t(2) << shift) < d) ++shift;
    m = uint64_t(((((unsigned __int128)1) << (64 + shift)) + d - 1) / d);
  }

  // n / d; n becomes n % d.
  __device__ __forceinline__ int64_t split(int64_t& n) const {
    const uint64_t q = d == 1 ? uint64_t(n) : __umul64hi(uint64_t(n), m) >> shift;
    n -= int64_t(q * d);
    return int64_t(q);
  }
};

}  // namespace fk::cuda
