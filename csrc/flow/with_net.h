// A step that has a net: its weights, packed once, and the sums of their gradients.
#pragma once
#include "../flow_layer/layer_tile.h"
#include "step.h"

namespace fk::FK_ISA {

template <class S>
struct WithNet {
  const FlowStep& step;
  TileColumns columns;
  Pass pass;
  bool few;
  Call<S> call;

  WithNet(const FlowArgs& a, const FlowStep& step, const Pass& pass, Arena& arena)
      : step(step),
        columns{a.features, step.in, step.out, step.n_out},
        pass(pass),
        few(!pass.backward && a.rows <= kFewRows),
        call(step.net) {
    call.in_place = true;
    call.lay(arena, pass.backward, few, pass.parts, !arena.counts());
  }

  // Packs the weights; once laid out.
  void pack() const {
    if (!few) FK_ISA::pack(call.net, pass.backward, pass.threads);
  }

  void clear(int part, bool is_empty) const { call.clear(part, is_empty); }
  void finish() const { call.finish(pass.parts, pass.threads); }
};

}  // namespace fk::FK_ISA
