// A step that is a flow layer: a map whose parameters a net makes.
#pragma once
#include "../flow_layer/layer_tile.h"
#include "step.h"

namespace fk::FK_ISA {

template <class S>
struct NetRoom {
  Tile<S> tile;
  BlockMap<S> map;

  NetRoom(const FlowStep& step, const Net<S>& net, int64_t blocks, bool backward, Arena& arena)
      : tile(net, blocks, backward, arena), map(block_map<S>(*step.map, arena)) {}
};

template <class S>
struct NetStep {
  const FlowStep& step;
  TileColumns columns;
  Pass pass;
  bool few;
  Call<S> call;

  NetStep(const FlowArgs& a, const FlowStep& step, const Pass& pass, Arena& arena)
      : step(step),
        columns{a.features, step.in, step.out, step.n_out},
        pass(pass),
        few(!pass.backward && a.rows <= kFewRows),
        call(step.net) {
    call.lay(arena, pass.backward, few, pass.parts, !arena.counts());
  }

  // Packs the weights; once laid out.
  void pack() const {
    if (!few) FK_ISA::pack(call.net, pass.backward, pass.threads);
  }

  void fwd(const NetRoom<S>& room, const RowTile& rows, S* x, S* ladj) const {
    const Net<S>& net = call.net;
    const int64_t blocks = rows.blocks<S>();
    gather_input(columns, net.layer[0], blocks, x, room.tile.a[0]);
    forward_tile(net, rows, room.tile, net.spec.n);
    map_features(columns, room.map, step.map->params(), net.last(), blocks, room.tile.a[net.spec.n], x, ladj);
  }

  void clear(int part, bool is_empty) const { call.clear(part, is_empty); }

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

  void finish() const { call.finish(pass.parts, pass.threads); }
};

}  // namespace fk::FK_ISA
