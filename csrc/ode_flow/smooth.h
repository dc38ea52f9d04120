// The activations of vector fields on pairs of vectors: values, slopes, and the slopes' own slopes.
#pragma once
#include "../common/pair.h"
#include "../net/normal_cdf.h"

#include "../net/activation.h"
#include "ode_flow.h"

namespace fk::FK_ISA {

template <class S>
using PairOf = Pair<typename Simd<S>::V>;

template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE T both(S s) {
  return s - T{};
}

template <class V>
FK_INLINE Pair<V> normal_cdf(Pair<V> p) {
  return {normal_cdf(p.a), normal_cdf(p.b)};
}

template <class T>
struct Activated {
  T value, slope;
};

template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE T logistic(T z) {
  const T e = exp_(-abs_(z)), q = S(1) / (S(1) + e);
  return select(z >= S(0), q, e * q);
}

// Of relu's kind; a NaN has no slope.
template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE Activated<T> by_pieces(T z, S negative) {
  const auto above = z > S(0);
  return {select(above, z, negative * z), select(z == z, select(above, both<T>(S(1)), both<T>(negative)), z)};
}

template <Smooth A, class T>
FK_INLINE Activated<T> activated(T z) {
  using S = typename ScalarOf<T>::S;
  const T one = both<T>(S(1));
  if constexpr (A == Smooth::relu) return by_pieces(z, S(0));
  if constexpr (A == Smooth::leaky_relu) return by_pieces(z, S(0.01));
  if constexpr (A == Smooth::elu) {
    const T low = min_(z, T{});
    return {select(z > S(0), z, expm1_nonpositive(low)), exp_(low)};
  }
  if constexpr (A == Smooth::gelu) {
    const T below = normal_cdf(z);
    return {z * below, below + z * (S(0.39894228040143268) * exp_(S(-0.5) * z * z))};
  }
  if constexpr (A == Smooth::silu) {
    const T s = logistic(z);
    return {z * s, s * (S(1) + z * (S(1) - s))};
  }
  if constexpr (A == Smooth::tanh) {
    const T h = tanh_(z);
    return {h, S(1) - h * h};
  }
  if constexpr (A == Smooth::softplus) {
    const T e = exp_(-abs_(z)), q = S(1) / (S(1) + e), far = max_(z, T{});
    return {far + Pair<decltype(e.a)>{log1p_unit(e.a), log1p_unit(e.b)}, select(z >= S(0), q, e * q)};
  }
  return {z, one};
}

// Whether the slope's slope needs z; the others follow from value and slope.
FK_INLINE bool needs_input(Smooth a) { return a == Smooth::gelu || a == Smooth::silu; }

template <Smooth A, class T>
FK_INLINE T slope_of_slope(T z, T h, T d) {
  using S = typename ScalarOf<T>::S;
  if constexpr (A == Smooth::elu) return select(h > S(0), T{}, d);
  if constexpr (A == Smooth::gelu) return S(0.39894228040143268) * exp_(S(-0.5) * z * z) * (S(2) - z * z);
  if constexpr (A == Smooth::silu) {
    const T s = logistic(z);
    return s * (S(1) - s) * (S(2) + z * (S(1) - S(2) * s));
  }
  if constexpr (A == Smooth::tanh) return S(-2) * h * d;
  if constexpr (A == Smooth::softplus) return d * (S(1) - d);
  return T{};
}

template <Smooth A>
struct SmoothIs {
  static constexpr Smooth value = A;
};

// f(SmoothIs<A>()) of the activation meant.
template <class F>
FK_INLINE void by_activation(Smooth a, const F& f) {
  switch (a) {
    case Smooth::relu: return f(SmoothIs<Smooth::relu>());
    case Smooth::leaky_relu: return f(SmoothIs<Smooth::leaky_relu>());
    case Smooth::elu: return f(SmoothIs<Smooth::elu>());
    case Smooth::gelu: return f(SmoothIs<Smooth::gelu>());
    case Smooth::silu: return f(SmoothIs<Smooth::silu>());
    case Smooth::tanh: return f(SmoothIs<Smooth::tanh>());
    case Smooth::softplus: return f(SmoothIs<Smooth::softplus>());
    default: return f(SmoothIs<Smooth::identity>());
  }
}

}  // namespace fk::FK_ISA
