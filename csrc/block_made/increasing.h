// The activations between layers of block autoregressive maps, on pairs of vectors: values, slopes, and the logarithms
// of slopes, which are numbers where a slope is less than the smallest one.
#pragma once
#include "../common/pair.h"
#include "../net/normal_cdf.h"

#include "../net/activation.h"
#include "block_made.h"

namespace fk::FK_ISA {

template <class S>
using PairOf = Pair<typename Simd<S>::V>;

template <class T, class S = typename ScalarOf<T>::S>
FK_INLINE T both(S s) {
  return s - T{};
}

template <class T>
struct Activated {
  T value, slope;  // slope: or its logarithm
};

// The value, and the slope's logarithm.
template <class T>
FK_INLINE Activated<T> with_log_slope(Increasing act, T z) {
  using S = typename ScalarOf<T>::S;
  switch (act) {
    case Increasing::tanh: {
      const T a = abs_(z);
      return {tanh_(z), S(2) * (S(0.69314718055994531) - a - log1p_unit(exp_(S(-2) * a)))};
    }
    case Increasing::sigmoid: {
      const T a = abs_(z), e = exp_(-a), q = S(1) / (S(1) + e);
      return {select(z >= S(0), q, e * q), -a - S(2) * log1p_unit(e)};
    }
    case Increasing::elu: {
      const T low = min_(z, T{});
      return {select(z > S(0), z, expm1_nonpositive(low)), low};
    }
    default: return {select(z > S(0), z, z * S(0.01)), select(z < S(0), both<T>(S(-4.6051701859880914)), T{})};
  }
}

// The value, and the slope.
template <class T>
FK_INLINE Activated<T> with_slope(Increasing act, T z) {
  using S = typename ScalarOf<T>::S;
  switch (act) {
    case Increasing::tanh: {
      const T e = exp_(S(-2) * abs_(z)), q = S(1) / (S(1) + e);
      return {tanh_(z), S(4) * e * q * q};
    }
    case Increasing::sigmoid: {
      const T e = exp_(-abs_(z)), q = S(1) / (S(1) + e), far = e * q;
      return {select(z >= S(0), q, far), far * q};
    }
    case Increasing::elu: {
      const T low = min_(z, T{});
      return {select(z > S(0), z, expm1_nonpositive(low)), exp_(low)};
    }
    default: return {select(z > S(0), z, z * S(0.01)), select(z > S(0), both<T>(S(1)), both<T>(S(0.01)))};
  }
}

// d log slope / d z, where the value is h.
template <class T>
FK_INLINE T slope_of_log_slope(Increasing act, T z, T h) {
  using S = typename ScalarOf<T>::S;
  switch (act) {
    case Increasing::tanh: return S(-2) * h;
    case Increasing::sigmoid: return S(1) - S(2) * h;
    case Increasing::elu: return select(z <= S(0), both<T>(S(1)), T{});
    default: return T{};
  }
}

}  // namespace fk::FK_ISA
