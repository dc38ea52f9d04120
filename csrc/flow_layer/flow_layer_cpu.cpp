// Flow layers, from x to y and ladj and back: the parameters of the maps never leave the cache.
#include "../common/kernels.h"
#include "flow_layer.h"
#include "layer_tile.h"

namespace fk::FK_ISA {
namespace {

// What a thread needs for its tiles.
template <class S>
struct LayerTile {
  TileColumns columns;
  Tile<S> net;
  S* x;     // [row blocks][features][kRowBlock], in memory's order
  S* g;     // the same, of gradients
  S* ladj;  // [row blocks][kRowBlock]; bwd: its gradient
  S* row;
  BlockMap<S> map;

  LayerTile(const Net<S>& n, const FlowLayerArgs& a, int64_t blocks, bool backward, Arena& arena)
      : columns{a.features, a.in_columns, a.columns, a.n_columns},
        net(n, blocks, backward, arena),
        x(arena.take<S>(size_t(blocks * a.features * kRowBlock<S>))),
        g(backward ? arena.take<S>(size_t(blocks * a.features * kRowBlock<S>)) : nullptr),
        ladj(arena.take<S>(size_t(blocks * kRowBlock<S>))),
        row(arena.take<S>(size_t(a.features))),
        map(block_map<S>(a.map, arena)) {}
};

template <class S>
void load_and_condition(const FlowLayerArgs& a, const Net<S>& net, const RowTile& rows, LayerTile<S>& t, bool again) {
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features, t.x);
  gather_input(t.columns, net.layer[0], rows.blocks<S>(), t.x, t.net.a[0]);
  forward_tile(net, rows, t.net, net.spec.n, again);
}

template <class S>
void fwd_tile(const FlowLayerArgs& a, const Net<S>& net, const RowTile& rows, LayerTile<S>& t) {
  load_and_condition(a, net, rows, t, false);
  map_features(t.columns, t.map, a.map.params(), net.last(), rows.blocks<S>(), t.net.a[net.spec.n], t.x, t.ladj);
  memcpy(static_cast<S*>(a.ladj) + rows.first, t.ladj, size_t(rows.rows) * sizeof(S));
  store_row_blocks(rows, t.x, a.features, nullptr, a.features, static_cast<S*>(a.y), t.row);
}

template <class S>
void bwd_tile(const FlowLayerArgs& a, const Net<S>& net, const RowTile& rows, const Sums<S>* sums, LayerTile<S>& t) {
  load_and_condition(a, net, rows, t, true);
  const int64_t blocks = rows.blocks<S>();
  if (a.grad_y)
    load_row_blocks(rows, static_cast<const S*>(a.grad_y), a.features, a.features, nullptr, a.features, t.g);
  else
    memset(t.g, 0, size_t(blocks * a.features * kRowBlock<S>) * sizeof(S));
  load_grad_ladj(rows, a.grad_ladj, t.ladj);
  map_gradients(t.columns, t.map, a.map.params(), net.last(), blocks, t.net.a[net.spec.n], t.x, t.ladj, t.net.g[0],
                t.g);
  const S* g_in = backward_tile(net, rows, t.net, sums, a.grad_x != nullptr);
  if (!g_in) return;
  add_input_gradient(t.columns, net.layer[0], blocks, g_in, t.g);
  store_row_blocks(rows, t.g, a.features, nullptr, a.features, static_cast<S*>(a.grad_x), t.row);
}

template <class S>
void run(const FlowLayerArgs& a, int threads, bool backward) {
  const int64_t work = a.net.work() + a.n_columns * a.map.params() * kParamWork;
  const Deal<S> deal(a.net, a.rows, work, threads);
  const Call<S> call(a.net, backward, a.rows, deal.parts, threads, true);
  const Net<S>& net = call.net;
  const auto make_tile = [&] {
    return in_scratch(Scratch::tile,
                      [&](Arena& arena) { return LayerTile<S>(net, a, deal.blocks(), backward, arena); });
  };
  if (!backward) {
    deal.share([&](const auto& next) {
      auto tile = make_tile();
      RowTile rows;
      while (next(&rows)) fwd_tile(a, net, rows, tile);
    });
    return;
  }
  deal.run([&](int part, int64_t b, int64_t e) {
    auto tile = make_tile();
    const Sums<S>* sums = call.clear(part);
    for (; b < e; ++b) bwd_tile(a, net, deal.tile(b), sums, tile);
  });
  call.finish(deal.parts, threads);
}

void fwd_any(const FlowLayerArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { run<decltype(s)>(a, threads, false); });
}
void bwd_any(const FlowLayerArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { run<decltype(s)>(a, threads, true); });
}

}  // namespace

extern const Kernels<FlowLayerArgs> flow_layer_kernels;
const Kernels<FlowLayerArgs> flow_layer_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
