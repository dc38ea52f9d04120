// The tail of the normal distribution, written once for a value type V: a SIMD vector, or float or double in CUDA.
// Included after simd.h or scalar.cuh.
#pragma once

// Chebyshev coefficients of log(erfc(z) / t) + z^2 in 2t - 1, t = 2 / (2 + z); enough of them for double. A macro, as a
// GPU knows a table of constants only inside of a function.
#define FK_ERFC                                                                                                      \
  -0.6513268598908547171, 0.6419697923564902603, 0.019476473204185836312, -0.0095615147868086316419,                 \
      -0.0009465953444820368663, 0.00036683949785276145187, 0.000042523324806907771645, -0.000020278578112534243154, \
      -1.6242900046470255135e-6, 1.3036558355805232018e-6, 1.5626441722066143178e-8, -8.5238095914926542525e-8,      \
      6.5290544390988514964e-9, 5.0593434955514689418e-9, -9.9136415649303308674e-10, -2.2736512229318358557e-10,    \
      9.646791102015526802e-11, 2.3940380830391147447e-12, -6.8860275264975533984e-12, 8.9448792730907257167e-13,    \
      3.1309213993429580783e-13, -1.1270822361367252365e-13, 3.8109052551892320678e-16, 7.1060976136092369431e-15,   \
      -1.5230282014571041472e-15, -9.4574945712912544535e-17

namespace fk::FK_ISA {

// Phi(-|v|) = t / 2 exp(rest - z^2).
template <class V>
struct NormalTail {
  V z, t, rest;
};

template <class V>
FK_INLINE NormalTail<V> normal_tail(V v, const double (&erfc)[26]) {
  using S = typename ScalarOf<V>::S;
  constexpr int kTerms = sizeof(S) == 4 ? 12 : 26;
  const V z = abs_(v) * S(0.70710678118654752), t = 2 / (2 + z), u = 2 * t - 1;
  V b1 = {}, b2 = {};  // Clenshaw's recurrence
  for (int i = kTerms - 1; i > 0; --i) {
    const V b = 2 * u * b1 - b2 + S(erfc[i]);
    b2 = b1;
    b1 = b;
  }
  return {z, t, u * b1 - b2 + S(erfc[0])};
}

}  // namespace fk::FK_ISA
