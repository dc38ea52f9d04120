// Activations and their derivatives, of a value type V: a SIMD vector on the CPU, float or double in CUDA. Included
// after the header that defines exp_, tanh_, abs_, max_, min_, select, splat, and normal_cdf.
#pragma once
#include "net.h"

namespace fk::FK_ISA {

// True where the derivative follows from the activation's output; the others need its input.
FK_INLINE bool from_output(Activation a) { return a != Activation::gelu && a != Activation::silu; }

template <class V>
FK_INLINE V sigmoid_(V v) {
  const V e = exp_(-abs_(v)), q = 1 / (1 + e);
  return select(v >= 0, q, e * q);
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
    case Activation::gelu: return v * normal_cdf(v);
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
    case Activation::gelu: return normal_cdf(in) + in * S(0.39894228040143268) * exp_(S(-0.5) * in * in);
    case Activation::silu: {
      const V s = sigmoid_(in);
      return s * (1 + in * (1 - s));
    }
    case Activation::tanh: return 1 - out * out;
    default: return one;
  }
}

}  // namespace fk::FK_ISA
