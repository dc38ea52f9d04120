// The way back through a tile, from the gradients of y and ladj. Everything is computed again.
#pragma once
#include "tile.h"

namespace fk::FK_ISA {

// The gradient of ladj's rows, in a row block; 0 past the end.
template <class S>
FK_INLINE PairOf<S> load_grad_ladj(const BlockArgs& a, const RowTile& rows, int64_t s) {
  constexpr int R = kRowBlock<S>;
  alignas(64) S of[R] = {};
  const S* const from = static_cast<const S*>(a.grad_ladj);
  for (int64_t l = 0; from && l < R && s * R + l < rows.rows; ++l) of[l] = from[rows.first + s * R + l];
  return load_pair(of);
}

// From the gradient of ladj (sign times what was given) to those that z of hidden layers gets through slopes, in g;
// sums the gradients of the blocks' logarithms.
template <class S>
void back_through_logs(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile, int part, S sign) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t blocks = rows.blocks<S>(), D = a.features;
  if (!a.grad_ladj) {
    for (int k = 0; k < a.n - 1; ++k) memset(tile.g[k], 0, size_t(blocks * out_width<S>(a, k) * R) * sizeof(S));
    return;
  }
  for (int64_t s = 0; s < blocks; ++s) {
    const T g = sign * load_grad_ladj<S>(a, rows, s);
    for (int64_t d = 0; d < D; ++d) {
      T share = both<T>(S(1)), rest;
      if (a.residual != BlockResidual::none)
        net.residual.shares(load_pair(tile.f_logs + (s * D + d) * R), &share, &rest);
      store_pair(tile.g_logs[a.n - 1] + (s * out_width<S>(a, a.n - 1) + d) * R, g * share);
    }
  }
  for (int k = a.n - 1; k >= 0; --k) {
    const Blocks<S>& b = net.blocks[k];
    const int64_t from = in_width<S>(a, k), to = out_width<S>(a, k), n = b.before(), m = b.after();
    const BlockSums<S> sums = net.sums ? net.sums_of(part, k) : BlockSums<S>{};
    if (k == 0 && !sums.outer) break;
    for (int64_t s = 0; s < blocks; ++s)
      for (int64_t d = 0; d < D; ++d) {
        const int64_t at_in = (s * from + d * n) * R, at_out = (s * to + d * m) * R;
        back_through_block(b, d, tile.logs[k] + at_in, tile.v[k] + at_in, tile.t[k] + at_out, tile.g_logs[k] + at_out,
                           sums, tile.spare, [&](int64_t j, T of_logs) {
                             if (k == 0) return;
                             const int64_t at = at_in + j * R;
                             store_pair(tile.g_logs[k - 1] + at, of_logs);
                             const T z = load_pair(tile.z[k - 1] + at), h = load_pair(tile.in[k] + at);
                             store_pair(tile.g[k - 1] + at, of_logs * slope_of_log_slope(a.activation, z, h));
                           });
      }
    if (sums.outer) add_outer(b, D, blocks, tile.g_logs[k], to, tile.v[k], from, sums);
  }
}

// The gradient of the gate from those of y and ladj, of a row block: g_y [features] in order.
template <class S>
FK_INLINE PairOf<S> gate_gradient(const BlockNet<S>& net, const BlockTile<S>& tile, int64_t s, const S* x, const S* g_y,
                                  PairOf<S> g_ladj) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const Residual<S>& r = net.residual;
  const int64_t D = a.features, f_width = out_width<S>(a, a.n - 1);
  T of_values = {}, of_slopes = {};
  for (int64_t d = 0; d < D; ++d) {
    const T f = load_pair(tile.z[a.n - 1] + (s * f_width + d) * R);
    of_values = of_values + load_pair(g_y + d * R) * (load_pair(x + d * R) - f);
    T share, rest;
    r.shares(load_pair(tile.f_logs + (s * D + d) * R), &share, &rest);
    of_slopes = of_slopes + (r.slope_kept * rest + r.slope_passed * share);
  }
  return (r.kept * r.passed) * of_values + g_ladj * of_slopes;
}

// Adds the gradients of weights of layer k: of its z in g[k], of what enters in in[k].
template <class S>
void add_weights(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile, const Sums<S>* sums, int k) {
  const Packed<S>& p = net.layer(k);
  if (sums[k].weight) transpose_row_blocks(rows, tile.in[k], p.in_width, p.n_in, tile.transposed);
  weight_gradients(p, tile.g[k], tile.transposed, rows.blocks<S>(), sums[k]);
}

template <class S>
void backward_rows(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile, const Sums<S>* sums, int part,
                   double* gate) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t D = a.features, blocks = rows.blocks<S>(), x_width = in_width<S>(a, 0);
  const int64_t f_width = out_width<S>(a, a.n - 1);
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, D, nullptr, x_width, tile.in[0]);
  forward_block_tile(net, rows, tile);
  back_through_logs(net, rows, tile, part, S(1));
  if (a.grad_y) {
    load_row_blocks(rows, static_cast<const S*>(a.grad_y), D, D, nullptr, D, tile.y);
    clear_past_end(rows, D, tile.y);
  } else {
    memset(tile.y, 0, size_t(blocks * D * R) * sizeof(S));
  }
  for (int64_t s = 0; s < blocks; ++s) {
    for (int64_t d = 0; d < D; ++d)
      store_pair(tile.g[a.n - 1] + (s * f_width + d) * R, net.residual.passed * load_pair(tile.y + (s * D + d) * R));
    if (a.grad_gate) {
      const T of_gate =
          gate_gradient(net, tile, s, tile.in[0] + s * x_width * R, tile.y + s * D * R, load_grad_ladj<S>(a, rows, s));
      *gate += double(sum_lanes(of_gate.a)) + double(sum_lanes(of_gate.b));
    }
  }
  for (int k = a.n - 1; k >= 0; --k) {
    add_weights(net, rows, tile, sums, k);
    if (k == 0 && !a.grad_x) return;
    backward_layer<S>(net.layer(k), tile.g[k], blocks, Activation::identity, nullptr, nullptr, nullptr, tile.product);
    if (k == 0) break;
    for (int64_t s = 0; s < blocks; ++s)
      for (int64_t j = 0; j < a.in(k); ++j) {
        const int64_t at = (s * in_width<S>(a, k) + j) * R;
        const T slope = with_slope(a.activation, load_pair(tile.z[k - 1] + at)).slope;
        store_pair(tile.g[k - 1] + at, load_pair(tile.g[k - 1] + at) + load_pair(tile.product + at) * slope);
      }
  }
  for (int64_t s = 0; s < blocks; ++s)
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = (s * D + d) * R;
      const T of_f = load_pair(tile.product + (s * x_width + d) * R);
      const bool adds = a.residual != BlockResidual::none;
      store_pair(tile.y + at, adds ? of_f + net.residual.kept * load_pair(tile.y + at) : of_f);
    }
  store_row_blocks(rows, tile.y, D, nullptr, D, static_cast<S*>(a.grad_x), tile.spare);
}

}  // namespace fk::FK_ISA
