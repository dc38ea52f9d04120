// A step that is an LU linear map: the lone op's products and sums, on rows of a tile.
#pragma once
#include "../lu_linear/backward.h"
#include "step.h"

namespace fk::FK_ISA {

// Rows of one block as `backward_block` moves them.
template <class S>
struct StepRows {
  const FlowStep& step;
  const S* x;
  S* g;
  bool wants_x;

  void load_grad_y(const int32_t* rank, S* to) const { gather_rows(step.out, rank, step.n_out, g, to); }
  void load_x(const int32_t* rank, S* to) const { gather_rows(step.in, rank, step.n_out, x, to); }
  bool load_y(S*) const { return false; }
  bool wants_grad_x() const { return wants_x; }
  void store_grad_x(const S* from, const int32_t* rank) const { scatter_rows(step.in, rank, step.n_out, from, g); }
  S* direct_grad_x(int64_t*) const { return nullptr; }
};

template <class S>
struct LuRoom {
  S *z = nullptr, *out = nullptr;  // forward: one row block
  LuTile<S> tile = {};             // backward
};

template <class S>
struct LuStep {
  const FlowStep& step;
  Pass pass;
  int64_t features;
  S ladj;
  const LuForward<S>* forward;
  const LuBackward<S>* backward;

  LuStep(const FlowArgs& a, const FlowStep& step, const Pass& pass, Arena& arena)
      : step(step),
        pass(pass),
        features(a.features),
        ladj(log_determinant<S>(step.lu)),
        forward(pass.forward ? placed<LuForward<S>>(arena, step.lu, pass.threads) : nullptr),
        backward(pass.backward ? placed<LuBackward<S>>(arena, step.lu, pass.wants_x, pass.parts, pass.threads)
                               : nullptr) {}

  LuRoom<S> room(int64_t blocks, Arena& arena) const {
    LuRoom<S> room;
    if (backward) room.tile = LuTile<S>(features, backward->whole, backward->weights, blocks, arena);
    if (forward) {
      const size_t size = size_t(round_up(features, kPanel) * kRowBlock<S>);
      room.z = arena.take<S>(size);
      room.out = arena.take<S>(size);
    }
    return room;
  }

  void fwd(const LuRoom<S>& room, const RowTile& rows, S* x, S* to_ladj) const {
    constexpr int R = kRowBlock<S>;
    const LuForward<S>& F = *forward;
    const int64_t blocks = rows.blocks<S>();
    const bool inverse = step.lu.inverse;
    fill_lanes(ladj, blocks, to_ladj);
    for (int64_t s = 0; s < blocks; ++s, x += features * R) {
      gather_rows(step.in, inverse ? F.f.rank : nullptr, features, x, room.z);
      if (F.whole) {
        F.W.apply(room.z, R, room.out, R);
        scatter_rows<S>(step.out, nullptr, features, room.out, x);
        continue;
      }
      clear_rows(room.z, features, round_up(features, kPanel));
      F.apply_triangles(room.z);
      scatter_rows<S>(step.out, inverse ? nullptr : F.f.rank, features, room.z, x);
    }
  }

  void clear(int part, bool) const { backward->clear(part); }

  void bwd(const LuRoom<S>& room, const RowTile& rows, int part, bool, S* x, const S*, const S*, S* g) const {
    const int64_t blocks = rows.blocks<S>(), size = features * kRowBlock<S>;
    clear_past_end(rows, features, g);
    clear_past_end(rows, features, x);
    for (int64_t s = 0; s < blocks; ++s)
      backward_block(step.lu.inverse, *backward, room.tile, StepRows<S>{step, x + s * size, g + s * size, pass.wants_x},
                     s);
    backward->add(step.lu, part, room.tile, blocks);
  }

  void finish() const { finish_lu(step.lu, *backward, pass.parts, pass.threads); }
};

}  // namespace fk::FK_ISA
