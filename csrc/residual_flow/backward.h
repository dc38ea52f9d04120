// The way back through a row block, from the gradients of y and ladj. Everything is computed again.
#pragma once
#include "series.h"

namespace fk::FK_ISA {

template <class S>
void clear_bends(const ResidualNet<S>& net, const ResidualTile<S>& t) {
  for (int k = 0; k < net.args.n; ++k)
    if (t.bend[k]) memset(t.bend[k], 0, size_t(net.args.layers[k].n_in * kRowBlock<S>) * sizeof(S));
}

// From t.grad, the gradient of the matrix, to those of weights and, in t.bend, of slopes.
template <class S>
void back_through_matrix(const ResidualNet<S>& net, const ResidualTile<S>& t, const Sums<S>* sums, int part) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>, L = kLanes<S>;
  const ResidualArgs& r = net.args;
  const int64_t D = r.features;
  for (int64_t from = 0; from < D; from += kTangents) {
    const int64_t some = D - from < kTangents ? D - from : kTangents;
    const S* g = t.grad.of(from, 0);
    for (int k = r.n - 1; k > 0; --k) {
      const int64_t width = net.in_width(k);
      const S* const kept = k > 1 ? t.tangent[k] + from * width * R : nullptr;
      const auto tangent = [&](int64_t i, int64_t d) {
        return kept ? load_pair(kept + (d * width + i) * R) : first_tangent(net, t, i, from + d);
      };
      S* const out = g == t.product ? t.there : t.product;
      back_through_layer(net, t, sums, k, some, g, tangent, out);
      g = out;
    }
    // g: of the derivatives of z[1], first weights and the slopes in front of them.
    const int64_t n = r.layers[0].n_out, width = net.layer(0).out_width;
    S* const first = net.first ? net.first + part * net.first_size() : nullptr;
    for (int64_t d = 0; d < some && (first || t.bend[0]); ++d) {
      const T slope = t.slope[0] ? load_pair(t.slope[0] + (from + d) * R) : both<T>(S(1));
      T bend = {};
      for (int64_t i = 0; i < n; ++i) {
        const T of = load_pair(g + (d * width + i) * R);
        if (t.bend[0]) bend = bend + of * net.first_weight(i, from + d);
        if (first) {
          S* const at = first + ((from + d) * n + i) * L;
          const T term = of * slope;
          store(at, load<typename Simd<S>::V>(at) + (term.a + term.b));
        }
      }
      if (t.bend[0]) store_pair(t.bend[0] + (from + d) * R, bend);
    }
  }
}

// From t.g, the gradient of g, and where `bent` from t.bend, to weights and, in t.of_x, to x.
template <class S>
void back_through_net(const ResidualNet<S>& net, const ResidualTile<S>& t, const Sums<S>* sums, int part, bool bent) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  for (int k = r.n - 1; k >= 0; --k) {
    const Packed<S>& p = net.layer(k);
    if (sums[k].weight) transpose_row_blocks(whole_blocks<S>(1), t.a[k], p.in_width, p.n_in, t.transposed);
    weight_gradients(p, t.g, t.transposed, 1, sums[k]);
    backward_layer<S>(p, t.g, 1, Activation::identity, nullptr, nullptr, nullptr, t.product);
    S* const to = k > 0 ? t.g : t.of_x;
    if (!r.activated(k)) {
      memcpy(to, t.product, size_t(p.n_in * R) * sizeof(S));
      continue;
    }
    const S beta = net.beta(k);
    T of_beta = {};
    for (int64_t j = 0; j < p.n_in; ++j) {
      const auto c = curve(r.activation, load_pair(t.z[k] + j * R), beta);
      const T of_value = load_pair(t.product + j * R);
      const T of_slope = bent ? load_pair(t.bend[k] + j * R) : T{};
      store_pair(to + j * R, of_value * c.slope + of_slope * c.bend);
      of_beta = of_beta + (of_value * c.value_by_beta + of_slope * c.bend_by_beta);
    }
    if (net.betas) {
      S* const at = net.betas + (part * r.activations() + r.beta_of(k)) * R;
      store_pair(at, load_pair(at) + of_beta);
    }
  }
}

// The gradients of rows, a row block or less.
template <class S>
void backward_rows(const ResidualNet<S>& net, const RowTile& rows, const ResidualTile<S>& t, const Sums<S>* sums,
                   int part) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  const int64_t D = r.features;
  const auto of_y = [&](S* to) {  // the gradient of y; 0 past the end
    if (!r.grad_y) {
      memset(to, 0, size_t(D * R) * sizeof(S));
      return;
    }
    load_row_blocks(rows, static_cast<const S*>(r.grad_y), D, D, nullptr, D, to);
    clear_past_end(rows, D, to);
  };
  if (r.inverse)
    load_row_blocks(rows, static_cast<const S*>(r.y), D, D, nullptr, net.in_width(0), t.x);
  else
    load_row_blocks(rows, static_cast<const S*>(r.x), r.x_stride, D, nullptr, net.in_width(0), t.x);
  run_net(net, t, true);
  const bool bent = r.grad_ladj != nullptr;
  if ((bent && !r.estimated()) || r.inverse) {
    fill_matrix(net, t);
    t.matrix.decompose(nullptr);
  }
  if (bent) {
    alignas(64) S of[R] = {};
    memcpy(of, static_cast<const S*>(r.grad_ladj) + rows.first, size_t(rows.rows) * sizeof(S));
    const T times = r.inverse ? -load_pair(of) : load_pair(of);
    clear_bends(net, t);
    if (r.estimated()) {
      back_through_series(net, rows, t, sums, times);
    } else {
      t.matrix.inverse_transposed(times, t.grad, t.w);
      back_through_matrix(net, t, sums, part);
    }
  }
  if (!r.inverse) {
    of_y(t.g);
    back_through_net(net, t, sums, part, bent);
    if (!r.grad_x) return;
    of_y(t.y);
    for (int64_t d = 0; d < D; ++d) store_pair(t.y + d * R, load_pair(t.y + d * R) + load_pair(t.of_x + d * R));
    store_row_blocks(rows, t.y, D, nullptr, D, static_cast<S*>(r.grad_x), t.spare);
    return;
  }
  // Of x at the root; of what it is the root of, by the implicit function theorem; of weights that moved it.
  of_y(t.y);
  if (bent) {
    memset(t.g, 0, size_t(D * R) * sizeof(S));
    back_through_net(net, t, sums, part, true);
    for (int64_t d = 0; d < D; ++d) store_pair(t.y + d * R, load_pair(t.y + d * R) + load_pair(t.of_x + d * R));
  }
  t.matrix.solve(t.y);
  for (int64_t d = 0; d < D; ++d) store_pair(t.g + d * R, T{} - load_pair(t.y + d * R));
  back_through_net(net, t, sums, part, false);
  if (r.grad_x) store_row_blocks(rows, t.y, D, nullptr, D, static_cast<S*>(r.grad_x), t.spare);
}

}  // namespace fk::FK_ISA
