// What a monotone network asks of its activations besides: written once for a value type V, a SIMD vector on the CPU,
// float or double in CUDA. Included after activation.h.
#pragma once

namespace fk::FK_ISA {

// The slope of an activation where its logarithm counts, by what came in: far out 1 - tanh^2 and elu + 1 are 0.
template <class V>
FK_INLINE V tail_slope(Activation act, V out, V in) {
  if (act == Activation::elu) return exp_(min_(in, V{}));
  if (act != Activation::tanh) return activation_slope(act, out, in);
  const V e = exp_(-2 * abs_(in)), q = 1 / (1 + e);
  return 4 * e * q * q;
}

// The second derivative, of activations that increase, at their output and their slope.
template <class V>
FK_INLINE V curvature(Activation act, V out, V slope) {
  if (act == Activation::elu) return select(out > 0, V{}, slope);
  if (act == Activation::tanh) return -2 * out * slope;
  return V{};
}

}  // namespace fk::FK_ISA
