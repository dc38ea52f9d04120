// The activations of residual blocks, on pairs of vectors: values, slopes, and how those change.
#pragma once
#include "../common/pair.h"
#include "../net/normal_cdf.h"

#include "../net/activation.h"
#include "residual_flow.h"

namespace fk::FK_ISA {

template <class S>
using PairOf = Pair<typename Simd<S>::V>;

template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE T both(S s) {
  return s - T{};
}

constexpr double kSteepest = 1.1;  // the slope of a swish is at most 1.0998
constexpr double kFlat = 1e3;      // beyond it a sigmoid is 0 or 1, and so is its product with what it is of

template <class T>
struct Contracted {
  T value, slope;
};

// Of z, and what the slope and both are derived by.
template <class T>
struct Curved {
  T slope, bend;                  // by z
  T value_by_beta, bend_by_beta;  // by beta, of a lipswish: of the value and of the slope
};

template <class T>
FK_INLINE void sigmoids(T t, T* share, T* rest) {
  using S = typename ScalarOf<T>::S;
  const T e = exp_(-abs_(t)), q = S(1) / (S(1) + e);
  *share = select(t >= S(0), q, e * q), *rest = select(t >= S(0), e * q, q);
}

template <class T>
FK_INLINE T within(T t) {
  using S = typename ScalarOf<T>::S;
  return max_(min_(t, both<T>(S(kFlat))), both<T>(S(-kFlat)));
}

template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE Contracted<T> contract(Contraction act, T z, S beta) {
  switch (act) {
    case Contraction::lipswish: {
      const T t = z * beta;
      T share, rest;
      sigmoids(t, &share, &rest);
      return {z * share / S(kSteepest), share * (S(1) + within(t) * rest) / S(kSteepest)};
    }
    case Contraction::elu: {
      const T low = min_(z, T{});
      return {select(z > S(0), z, expm1_nonpositive(low)), exp_(low)};
    }
    default: {
      const T e = exp_(S(-2) * abs_(z)), q = S(1) / (S(1) + e);
      return {tanh_(z), S(4) * e * q * q};
    }
  }
}

template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE Curved<T> curve(Contraction act, T z, S beta) {
  switch (act) {
    case Contraction::lipswish: {
      const T t = z * beta;
      T share, rest;
      sigmoids(t, &share, &rest);
      const T near = within(t), both_shares = share * rest;
      const T by_t = both_shares * (S(2) + near * (rest - share)) / S(kSteepest);
      return {share * (S(1) + near * rest) / S(kSteepest), by_t * beta, z * both_shares * z / S(kSteepest), by_t * z};
    }
    case Contraction::elu: {
      const T slope = exp_(min_(z, T{}));
      return {slope, select(z <= S(0), slope, T{}), T{}, T{}};
    }
    default: {
      const T e = exp_(S(-2) * abs_(z)), q = S(1) / (S(1) + e), slope = S(4) * e * q * q;
      return {slope, S(-2) * tanh_(z) * slope, T{}, T{}};
    }
  }
}

}  // namespace fk::FK_ISA
