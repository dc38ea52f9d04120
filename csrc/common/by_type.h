// From types that are run-time values to template arguments: a function is called with a number of the type meant.
#pragma once
#include "simd.h"
#include "tensor.h"

namespace fk::FK_ISA {

// f(S()) with the type that numbers of this type are computed in: float for those of 16 bits too.
template <class F>
FK_INLINE void by_scalar(DType type, const F& f) {
  if (type == DType::f64)
    f(double());
  else
    f(float());
}

// f(T()) where numbers of this type, T, are computed in S; else nothing.
template <class S, class F>
FK_INLINE void by_storage(DType type, const F& f) {
  if constexpr (sizeof(S) == 8) {
    if (type == DType::f64) f(double());
  } else {
    if (type == DType::f32) f(float());
    if (type == DType::bf16) f(bf16());
    if (type == DType::f16) f(f16());
  }
}

}  // namespace fk::FK_ISA
