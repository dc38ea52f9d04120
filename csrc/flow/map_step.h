// A step that maps features with parameters of their own, the same for every row.
#pragma once
#include "../flow_layer/layer_tile.h"
#include "step.h"

namespace fk::FK_ISA {

template <class S>
struct MapRoom {
  S* grads;  // bwd: [params][kRowBlock]
  BlockMap<S> map;

  MapRoom(const FlowStep& step, bool backward, Arena& arena)
      : grads(backward ? arena.take<S>(size_t(step.params() * kRowBlock<S>)) : nullptr),
        map(block_map<S>(*step.map, arena)) {}
};

template <class S>
struct MapStep {
  const FlowStep& step;
  Pass pass;
  TileColumns columns;
  Packed<S> rows_of_params;  // how a net's would lie
  S* params;                 // [params][kRowBlock], the same in all lanes
  S* sums;                   // [parts]

  MapStep(const FlowArgs& a, const FlowStep& step, const Pass& pass, Arena& arena)
      : step(step), pass(pass), columns{a.features, step.in, step.out, step.n_out}, rows_of_params{} {
    const int64_t n = step.params();
    params = arena.take<S>(size_t(n * kRowBlock<S>));
    sums = pass.backward ? arena.take<S>(pass.parts * LaneSums<S>::size(n)) : nullptr;
    for (int64_t i = 0; !arena.counts() && i < n; ++i)
      fill_lanes(static_cast<const S*>(step.scale)[i], 1, params + i * kRowBlock<S>);
  }

  void fwd(const MapRoom<S>& room, const RowTile& rows, S* x, S* ladj) const {
    for (int64_t s = 0; s < rows.blocks<S>(); ++s, x += columns.features * kRowBlock<S>, ladj += kRowBlock<S>)
      map_features(columns, room.map, step.map->params(), rows_of_params, 1, params, x, ladj);
  }

  LaneSums<S> sum(int part) const { return {sums + part * LaneSums<S>::size(step.params()), step.params()}; }
  void clear(int part, bool) const { sum(part).clear(); }

  void bwd(const MapRoom<S>& room, const RowTile& rows, int part, bool, S* x, const S*, const S* ladj, S* g) const {
    constexpr int R = kRowBlock<S>;
    const LaneSums<S> own = sum(part);
    clear_past_end(rows, columns.features, g);
    for (int64_t s = 0; s < rows.blocks<S>(); ++s, x += columns.features * R, g += columns.features * R, ladj += R) {
      map_gradients(columns, room.map, step.map->params(), rows_of_params, 1, params, x, ladj, room.grads, g);
      for (int64_t i = 0; step.grad_scale && i < own.n; ++i) own.add(i, load_pair(room.grads + i * R));
    }
  }

  void finish() const {
    for (int64_t i = 0; step.grad_scale && i < step.params(); ++i) {
      double total = 0;
      for (int part = 0; part < pass.parts; ++part) total += sum(part).total(i);
      static_cast<S*>(step.grad_scale)[i] = S(total);
    }
  }
};

}  // namespace fk::FK_ISA
