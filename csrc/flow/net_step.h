// A step that is a flow layer: a map whose parameters a net makes.
#pragma once
#include "with_net.h"

namespace fk::FK_ISA {

template <class S>
struct NetRoom {
  Tile<S> tile;
  BlockMap<S> map;

  NetRoom(const FlowStep& step, const Net<S>& net, int64_t blocks, bool backward, Arena& arena)
      : tile(net, blocks, backward, arena), map(block_map<S>(*step.map, arena)) {}
};

template <class S>
struct NetStep : WithNet<S> {
  using WithNet<S>::step, WithNet<S>::columns, WithNet<S>::pass, WithNet<S>::call;
  using WithNet<S>::WithNet;

  void fwd(const NetRoom<S>& room, const RowTile& rows, S* x, S* ladj) const {
    const Net<S>& net = call.net;
    const int64_t blocks = rows.blocks<S>();
    gather_input(columns, net.layer[0], blocks, x, room.tile.a[0]);
    forward_tile(net, rows, room.tile, net.spec.n);
    map_features(columns, room.map, step.map->params(), net.last(), blocks, room.tile.a[net.spec.n], x, ladj);
  }

  void bwd(const NetRoom<S>& room, const RowTile& rows, int part, bool first, S* x, const S*, const S* ladj,
           S* g) const {
    const Net<S>& net = call.net;
    const int64_t blocks = rows.blocks<S>();
    gather_input(columns, net.layer[0], blocks, x, room.tile.a[0]);
    forward_tile(net, rows, room.tile, net.spec.n, true);
    map_gradients(columns, room.map, step.map->params(), net.last(), blocks, room.tile.a[net.spec.n], x, ladj,
                  room.tile.g[0], g);
    const S* g_in = backward_tile(net, rows, room.tile, call.sums + part * net.spec.n, pass.wants_x, first);
    if (g_in) add_input_gradient(columns, net.layer[0], blocks, g_in, g);
  }
};

}  // namespace fk::FK_ISA
