// A step that is the slow direction of an autoregressive layer: one sweep over the hidden units of its net. Going back
// it needs what left it, too, where the net is taken.
#pragma once
#include <optional>

#include "../autoregressive_inverse/sweep_tile.h"
#include "with_net.h"

namespace fk::FK_ISA {

template <class S>
struct SweepRoom {
  std::optional<SweepTile<S>> forward;
  std::optional<SweepBackTile<S>> backward;
};

template <class S>
struct SweepNetStep : WithNet<S> {
  using WithNet<S>::step, WithNet<S>::columns, WithNet<S>::pass, WithNet<S>::call;
  using WithNet<S>::WithNet;

  SweepRoom<S> room(int64_t blocks, Arena& arena) const {
    SweepRoom<S> found;
    if (pass.forward) found.forward.emplace(call.net, *step.map, columns.features, blocks, arena);
    if (pass.backward) found.backward.emplace(call.net, *step.map, columns.features, false, blocks, arena);
    return found;
  }

  void fwd(const SweepRoom<S>& room, const RowTile& rows, S* x, S* ladj) const {
    const SweepTile<S>& tile = *room.forward;
    each_block(rows, x, tile.z, [&](S* at, S* to) { gather_rows(columns.in, nullptr, columns.n_out, at, to); });
    sweep_tile(call.net, step.map->params(), {}, rows, tile, ladj);
    each_block(rows, x, tile.x, [&](S* at, S* from) { scatter_rows(columns.out, nullptr, columns.n_out, from, at); });
  }

  void bwd(const SweepRoom<S>& room, const RowTile& rows, int part, bool first, S* x, const S* after, const S* ladj,
           S* g) const {
    const SweepBackTile<S>& tile = *room.backward;
    const auto gather = [&](S* at, S* to) { gather_rows(columns.in, nullptr, columns.n_out, at, to); };
    each_block(rows, x, tile.z, gather);
    each_block(rows, g, tile.gz, gather);
    gather_input(columns, call.net.layer[0], rows.blocks<S>(), after, tile.net.a[0]);
    sweep_back_tile(call.net, step.map->params(), rows, call.sums + part * call.net.spec.n, first, tile, ladj);
    each_block(rows, g, tile.gz, [&](S* at, S* from) { scatter_rows(columns.in, nullptr, columns.n_out, from, at); });
  }

 private:
  // f(row block of x, that of the net's features).
  template <class F>
  void each_block(const RowTile& rows, S* x, S* own, const F& f) const {
    for (int64_t s = 0; s < rows.blocks<S>(); ++s)
      f(x + s * columns.features * kRowBlock<S>, own + s * columns.n_out * kRowBlock<S>);
  }
};

}  // namespace fk::FK_ISA
