// A block autoregressive network forward on a tile of rows.
#pragma once
#include "block_net.h"

namespace fk::FK_ISA {

// What a tile keeps: forward, buffers take turns; an inverse looks at all units of earlier features again; backward
// each layer has its own of everything.
enum class Keep { nothing, units, all };

// The buffers of a tile, in row blocks.
template <class S>
struct BlockTile {
  S* in[kMaxLayers];                 // what enters layer k; of the first: x
  S* logs[kMaxLayers];               // logarithms of the slopes of that
  S* z[kMaxLayers];                  // what leaves its product
  S *v[kMaxLayers], *t[kMaxLayers];  // see blocks.h; of one feature alone where nothing is kept
  bool kept;
  S *f_logs, *y;  // [features]: logarithms of f's slopes; y, x or their gradients
  S* spare;       // where rows past the end go, and numbers of a feature
  // Backward.
  S* g[kMaxLayers];       // gradients of z
  S* g_logs[kMaxLayers];  // gradients of the logarithms behind layer k; then u
  S *product, *transposed;

  BlockTile(const BlockArgs& a, int64_t blocks, Keep keeps, Arena& arena) : kept(keeps == Keep::all) {
    int64_t widest = 0, most = 1;
    for (int k = 0; k < a.n; ++k) {
      const int64_t before = a.layers[k].before, after = a.layers[k].after;
      most = before > most ? before : most;
      most = after > most ? after : most;
    }
    widest = round_up(most * a.features, kPanel);
    const auto take = [&](int64_t width) { return arena.take<S>(size_t(width * blocks * kRowBlock<S>)); };
    S *turns[3][2] = {}, *of_feature[2] = {};
    for (int i = keeps == Keep::nothing ? 0 : 3; i < 3; ++i)
      for (S*& buffer : turns[i]) buffer = take(widest);
    for (S*& buffer : of_feature) buffer = kept ? nullptr : arena.take<S>(size_t(most * kRowBlock<S>));
    for (int k = 0; k < a.n; ++k) {
      const int64_t in_width = round_up(a.in(k), kPanel), out_width = round_up(a.out(k), kPanel);
      in[k] = keeps == Keep::nothing ? turns[0][k % 2] : take(in_width);
      logs[k] = kept ? take(in_width) : turns[1][k % 2];
      z[k] = kept ? take(out_width) : turns[2][k % 2];
      v[k] = kept ? take(in_width) : of_feature[0];
      t[k] = kept ? take(out_width) : of_feature[1];
      g[k] = kept ? take(out_width) : nullptr;
      g_logs[k] = kept ? take(out_width) : nullptr;
    }
    f_logs = take(a.features);
    y = take(a.features);
    product = kept ? take(widest) : nullptr;
    transposed = kept ? take(round_up(widest, kRowBlock<S>)) : nullptr;
    spare = arena.take<S>(size_t((widest > most * kRowBlock<S> ? widest : most * kRowBlock<S>)));
  }

  // Numbers that a row takes.
  static int64_t widths(const BlockArgs& a, Keep keeps) {
    int64_t inputs = 0, outputs = 0, widest = 0;
    for (int k = 0; k < a.n; ++k) {
      inputs += a.in(k), outputs += a.out(k);
      widest = a.in(k) > widest ? a.in(k) : widest;
    }
    const int64_t of_layers = keeps == Keep::nothing ? 6 * widest : keeps == Keep::units ? inputs : 0;
    return 2 * a.features + (keeps == Keep::all ? 3 * inputs + 4 * outputs + 2 * widest : of_layers);
  }
};

template <class S>
FK_INLINE int64_t in_width(const BlockArgs& a, int k) {
  return round_up(a.in(k), kPanel);
}
template <class S>
FK_INLINE int64_t out_width(const BlockArgs& a, int k) {
  return round_up(a.out(k), kPanel);
}

// From what lies in in[0] to the last z and f_logs.
template <class S>
void forward_block_tile(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t blocks = rows.blocks<S>();
  for (int64_t i = 0; i < blocks * in_width<S>(a, 0); ++i) store_pair(tile.logs[0] + i * R, T{});
  for (int k = 0; k < a.n; ++k) {
    Outlet<S> o = {};
    o.z = tile.z[k];
    forward_layer(net.layer(k), tile.in[k], rows, o);
    const bool last = k == a.n - 1;
    const int64_t from = in_width<S>(a, k), to = out_width<S>(a, k), n = a.layers[k].before, m = a.layers[k].after;
    for (int64_t s = 0; s < blocks; ++s)
      for (int64_t d = 0; d < a.features; ++d) {
        const int64_t at_in = (s * from + d * n) * R, at_out = (s * to + d * m) * R;
        through_block(net.blocks[k], d, tile.logs[k] + at_in, tile.v[k] + (tile.kept ? at_in : 0),
                      tile.t[k] + (tile.kept ? at_out : 0), [&](int64_t i, T logs) {
                        if (last) {
                          store_pair(tile.f_logs + (s * a.features + d) * R, logs);
                          return;
                        }
                        const int64_t at = at_out + i * R;
                        const auto [value, log_slope] = with_log_slope(a.activation, load_pair(tile.z[k] + at));
                        store_pair(tile.in[k + 1] + at, value);
                        store_pair(tile.logs[k + 1] + at, logs + log_slope);
                      });
      }
  }
}

// ladj of a row block to where it belongs.
template <class S>
FK_INLINE void store_ladj(const BlockArgs& a, const RowTile& rows, int64_t s, const LadjSum<PairOf<S>>& ladj) {
  constexpr int R = kRowBlock<S>;
  alignas(64) S total[R];
  store_pair(total, ladj.total());
  const int64_t used = rows.rows - s * R;
  memcpy(static_cast<S*>(a.ladj) + rows.first + s * R, total, size_t(used < R ? used : R) * sizeof(S));
}

template <class S>
void forward_rows(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t D = a.features, x_width = in_width<S>(a, 0), f_width = out_width<S>(a, a.n - 1);
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, D, nullptr, x_width, tile.in[0]);
  // x is read once more behind the last layer, when its buffer may be another layer's.
  if (a.residual != BlockResidual::none)
    load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, D, nullptr, D, tile.y);
  forward_block_tile(net, rows, tile);
  for (int64_t s = 0; s < rows.blocks<S>(); ++s) {
    LadjSum<T> ladj;
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = (s * D + d) * R;
      const T f = load_pair(tile.z[a.n - 1] + (s * f_width + d) * R);
      store_pair(tile.y + at, a.residual == BlockResidual::none ? f : net.residual.value(load_pair(tile.y + at), f));
      ladj.add(net.residual.log_slope(load_pair(tile.f_logs + at)));
    }
    store_ladj<S>(a, rows, s, ladj);
  }
  store_row_blocks(rows, tile.y, D, nullptr, D, static_cast<S*>(a.y), tile.spare);
}

}  // namespace fk::FK_ISA
