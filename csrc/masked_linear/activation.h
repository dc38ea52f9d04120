// Activations and their derivatives, a vector at a time.
#pragma once
#include "../common/simd.h"
#include "net.h"

namespace fk::FK_ISA {

// True where the derivative follows from the activation's output; the others need its input.
FK_INLINE bool from_output(Activation a) { return a != Activation::gelu && a != Activation::silu; }

template <class V>
FK_INLINE V sigmoid_(V v) {
  const V e = exp_(-abs_(v)), q = 1 / (1 + e);
  return select(v >= 0, q, e * q);
}

// (e^2|v| - 1) / (e^2|v| + 1) away from zero; near it, where that cancels, an odd rational function.
template <class V>
FK_INLINE V tanh_(V v) {
  const V a = abs_(v), e = exp_(-2 * a);
  const V far = (1 - e) / (1 + e);
  const V t = v * v;
  // Continued fraction of tanh to t^5: 1 ulp of double below 0.25.
  const V num = 10395 + t * (1260 + t * 21), den = 10395 + t * (4725 + t * (210 + t));
  const V near = a * num / den;
  const V r = select(a < 0.25f, near, far);
  return select(v < 0, -r, select(v == v, r, v));
}

// e^v - 1 for v <= 0: by 2 tanh(v/2) / (1 - tanh(v/2)), which keeps its digits near zero.
template <class V>
FK_INLINE V expm1_nonpositive(V v) {
  const V t = tanh_(v * 0.5f);
  return 2 * t / (1 - t);
}

template <class V>
FK_INLINE V activate(Activation a, V v) {
  switch (a) {
    case Activation::relu: return max_(v, V{});
    case Activation::leaky_relu: return select(v > 0, v, v * typename ScalarOf<V>::S(0.01));
    case Activation::elu: return select(v > 0, v, expm1_nonpositive(min_(v, V{})));
    case Activation::silu: return v * sigmoid_(v);
    case Activation::tanh: return tanh_(v);
    default: return v;
  }
}

// d activate / d v, at output `out` or, where from_output is false, at input `in`.
template <class V>
FK_INLINE V activation_slope(Activation a, V out, V in) {
  using S = typename ScalarOf<V>::S;
  const V one = splat<V>(S(1));
  switch (a) {
    case Activation::relu: return select(out > 0, one, V{});
    case Activation::leaky_relu: return select(out > 0, one, splat<V>(S(0.01)));
    case Activation::elu: return select(out > 0, one, out + 1);
    case Activation::silu: {
      const V s = sigmoid_(in);
      return s * (1 + in * (1 - s));
    }
    case Activation::tanh: return 1 - out * out;
    default: return one;
  }
}

}  // namespace fk::FK_ISA
