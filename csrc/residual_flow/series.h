// A determinant estimated by noise v: log det(I + J) by terms of its power series, v^T J^k v, and the way back from it,
// n^T dJ v with n = sum over k of (-1)^k w_(k+1) (J^T)^k v, by Neumann's. Draws of noise are directions.
#pragma once
#include "tangents.h"

namespace fk::FK_ISA {

// Draws [from, from + some) of a tensor [draws, rows, features], to row blocks.
template <class S>
void load_draws(const ResidualNet<S>& net, const RowTile& rows, const void* at, int64_t from, int64_t some, S* to) {
  const ResidualArgs& r = net.args;
  const int64_t D = r.features;
  for (int64_t d = 0; d < some; ++d)
    load_row_blocks(rows, static_cast<const S*>(at) + (from + d) * r.rows * D, D, D, nullptr, D,
                    to + d * net.in_width(0) * kRowBlock<S>);
}

// J^T q of `some` row blocks, after run_net; in t.here or t.there, where q may be too.
template <class S>
const S* pulled(const ResidualNet<S>& net, const ResidualTile<S>& t, int64_t some, const S* q) {
  constexpr int R = kRowBlock<S>;
  for (int k = net.args.n - 1; k >= 0; --k) {
    const Packed<S>& p = net.layer(k);
    S* const out = q == t.here ? t.there : t.here;
    backward_layer<S>(p, q, some, Activation::identity, nullptr, nullptr, nullptr, out);
    for (int64_t d = 0; t.slope[k] && d < some; ++d)
      multiply_into(p.n_in * R, out + d * p.in_width * R, t.slope[k], out + d * p.in_width * R);
    q = out;
  }
  return q;
}

// The mean over the draws, after run_net; where there is room, n too.
template <class S>
PairOf<S> series(const ResidualNet<S>& net, const RowTile& rows, const ResidualTile<S>& t) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  const int64_t D = r.features, width = net.in_width(0);
  const S* const weights = static_cast<const S*>(r.weights);
  LadjSum<T> total;
  for (int64_t from = 0; from < r.draws; from += kTangents) {
    const int64_t some = r.draws - from < kTangents ? r.draws - from : kTangents;
    S* const v = t.moved[0];
    load_draws(net, rows, r.noise, from, some, v);
    const S* q = v;
    for (int64_t k = 1; k <= r.terms; ++k) {
      q = pulled(net, t, some, q);
      const S sign = k % 2 ? S(1) : S(-1), of_term = sign * weights[k - 1] / S(k);
      const S of_power = k < r.terms ? -sign * weights[k] : S(0);
      for (int64_t d = 0; d < some; ++d)
        for (int64_t i = d * width; i < d * width + D; ++i) {
          const T power = load_pair(q + i * R), of = load_pair(v + i * R);
          total.add(of_term * (power * of));
          if (!r.inner) continue;
          const T before = k == 1 ? weights[0] * of : load_pair(t.inner + i * R);
          store_pair(t.inner + i * R, before + of_power * power);
        }
    }
    for (int64_t d = 0; r.inner && d < some; ++d)
      store_row_blocks(rows, t.inner + d * width * R, D, nullptr, D, static_cast<S*>(r.inner) + (from + d) * r.rows * D,
                       t.spare);
  }
  return total.total() / S(r.draws);
}

// `times` the gradient of n^T J v, n a constant, to those of weights and, in t.bend, of slopes.
template <class S>
void back_through_series(const ResidualNet<S>& net, const RowTile& rows, const ResidualTile<S>& t, const Sums<S>* sums,
                         PairOf<S> times) {
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  times = times / S(r.draws);
  for (int64_t from = 0; from < r.draws; from += kTangents) {
    const int64_t some = r.draws - from < kTangents ? r.draws - from : kTangents;
    load_draws(net, rows, r.noise, from, some, t.moved[0]);
    load_draws(net, rows, r.inner, from, some, t.inner);
    for (int64_t d = 0; d < some; ++d)
      for (int64_t i = d * net.in_width(0); i < d * net.in_width(0) + r.features; ++i)
        store_pair(t.inner + i * R, times * load_pair(t.inner + i * R));
    const auto along = [&](int k) {
      return [at = t.moved[k], width = net.in_width(k)](int64_t i, int64_t d) {
        return load_pair(at + (d * width + i) * R);
      };
    };
    for (int k = 0; k + 1 < r.n; ++k) {
      enter(net, t, k, some, along(k), t.here);
      Outlet<S> o = {};
      o.z = t.moved[k + 1];
      forward_layer(net.linear[k], t.here, whole_blocks<S>(some), o);
    }
    const S* g = t.inner;
    for (int k = r.n - 1; k >= 0; --k) {
      S* const out = g == t.product ? t.there : t.product;
      back_through_layer(net, t, sums, k, some, g, along(k), out);
      g = out;
    }
  }
}

}  // namespace fk::FK_ISA
