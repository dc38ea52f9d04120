// A polynomial of one feature, as its op and fused layers on a GPU call it.
#pragma once
#include "../univariate/root.cuh"

#include "bernstein_math.h"
#include "squares_math.h"

namespace fk::cuda {

// Of formulas F. Gradients are left where the params are; `room`: for what F works in, `apart` from each other.
template <class S, class F>
struct PolynomialMap : F {
  using F::F;

  __device__ __forceinline__ void operator()(S* params, S* room, int apart, S v, S* out, S* ladj) const {
    F::map({params, 1}, {room, apart}, v, out, ladj);
  }
  __device__ __forceinline__ S grad(S* params, S* room, int apart, S v, S g_out, S g_ladj) const {
    const Numbers<S> c = {params, 1};
    return F::grad(c, c, {room, apart}, v, g_out, g_ladj);
  }
};

template <class S, class F>
void with_map(const PolynomialSpec& s, const F& f) {
  if (s.of_squares)
    f(PolynomialMap<S, Squares<S>>(s));
  else
    f(PolynomialMap<S, Bernstein<S>>(s));
}

}  // namespace fk::cuda
