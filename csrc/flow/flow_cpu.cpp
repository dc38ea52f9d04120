// Whole flows, from x to y and ladj and back. A tile of rows stays in the cache from the first layer to the last. A
// thread with many tiles takes several through a layer before the next, so that a layer's weights are read for all of
// them at once: per row a tile needs the features alone, which are few. A backward pass reads what enters each layer
// where that was kept, and else goes forward with its tiles first.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "lu_step.h"
#include "map_step.h"
#include "net_step.h"
#include "normal_step.h"
#include "scale_step.h"
#include "sweep_step.h"

namespace fk::FK_ISA {
namespace {

constexpr int64_t kGroupBytes = 256 << 10;  // features of the tiles that go through a step together
constexpr int64_t kMaxGroup = 16;

// Everything of a call that is not one tile's: packed weights of all steps and, for backward, the threads' sums.
template <class S>
struct FlowWeights {
  const FlowArgs& a;
  bool backward;
  void** steps;  // [n], each of its own kind

  FlowWeights(const FlowArgs& args, bool is_backward, int parts, int threads) : a(args), backward(is_backward) {
    const auto lay = [&](Arena& arena) {
      steps = arena.take<void*>(size_t(a.n));
      for (int i = 0; i < a.n; ++i) {
        void* const at =
            laid_out(a.steps[i], {!backward || a.recomputes, backward, i > 0 || a.grad_x, parts, threads}, arena);
        if (!arena.counts()) steps[i] = at;
      }
    };
    Arena counted(nullptr);
    lay(counted);
    Arena shared(workspace(Scratch::shared, counted.used()));
    lay(shared);
    for (int i = 0; i < a.n; ++i)
      if (a.steps[i].kind == StepKind::layer)
        static_cast<const NetStep<S>*>(steps[i])->pack();
      else if (a.steps[i].kind == StepKind::sweep)
        static_cast<const SweepNetStep<S>*>(steps[i])->pack();
  }

  // f(step i, as what it is).
  template <class F>
  void with(int i, const F& f) const {
    switch (a.steps[i].kind) {
      case StepKind::layer: return f(*static_cast<const NetStep<S>*>(steps[i]));
      case StepKind::sweep: return f(*static_cast<const SweepNetStep<S>*>(steps[i]));
      case StepKind::lu: return f(*static_cast<const LuStep<S>*>(steps[i]));
      case StepKind::scale: return f(*static_cast<const ScaleStep<S>*>(steps[i]));
      case StepKind::elementwise: return f(*static_cast<const MapStep<S>*>(steps[i]));
      case StepKind::normal: return f(*static_cast<const NormalStep<S>*>(steps[i]));
    }
  }

  // f(step i, its room for tiles of so many row blocks); where the arena only counts, just what is counted is right.
  template <class F>
  void with_room(int i, int64_t blocks, Arena& arena, const F& f) const {
    const FlowStep& step = a.steps[i];
    switch (step.kind) {
      case StepKind::layer: {
        const auto& net = *static_cast<const NetStep<S>*>(steps[i]);
        return f(net, NetRoom<S>(step, net.call.net, blocks, backward, arena));
      }
      case StepKind::sweep: {
        const auto& sweep = *static_cast<const SweepNetStep<S>*>(steps[i]);
        return f(sweep, sweep.room(blocks, arena));
      }
      case StepKind::lu: {
        const auto& lu = *static_cast<const LuStep<S>*>(steps[i]);
        return f(lu, lu.room(blocks, arena));
      }
      case StepKind::scale: return f(*static_cast<const ScaleStep<S>*>(steps[i]), typename ScaleStep<S>::Room());
      case StepKind::elementwise:
        return f(*static_cast<const MapStep<S>*>(steps[i]), MapRoom<S>(step, backward, arena));
      case StepKind::normal: return f(*static_cast<const NormalStep<S>*>(steps[i]), typename NormalStep<S>::Room());
    }
  }

 private:
  void* laid_out(const FlowStep& step, const Pass& pass, Arena& arena) const {
    switch (step.kind) {
      case StepKind::layer: return placed<NetStep<S>>(arena, a, step, pass);
      case StepKind::sweep: return placed<SweepNetStep<S>>(arena, a, step, pass);
      case StepKind::lu: return placed<LuStep<S>>(arena, a, step, pass);
      case StepKind::scale: return placed<ScaleStep<S>>(arena, a, step, pass);
      case StepKind::elementwise: return placed<MapStep<S>>(arena, a, step, pass);
      case StepKind::normal: return placed<NormalStep<S>>(arena, a, step, pass);
    }
    return nullptr;
  }
};

inline int64_t widest(const FlowArgs& a) {
  int64_t most = 0;
  for (int i = 0; i < a.n; ++i) {
    const int64_t widths = a.steps[i].widths(a.features);
    most = widths > most ? widths : most;
  }
  return most;
}

inline int64_t work_of(const FlowArgs& a) {
  int64_t work = 0;
  for (int i = 0; i < a.n; ++i)
    work += a.steps[i].multiply_adds(a.features) + (a.steps[i].map ? a.steps[i].params() * kParamWork : 0);
  return work;
}

// Whether backward needs what leaves the last step.
inline bool needs_last(const FlowArgs& a) { return a.steps[a.n - 1].kind == StepKind::sweep; }

// What a thread needs for a group of tiles. Buffers of steps lie in `room`, one step's after another's.
template <class S>
struct Group {
  int64_t size, blocks;  // of x and g a tile; row blocks of a tile
  S* x;                  // [tiles][row blocks][features][kRowBlock], in the order of the flow's x; bwd: of one tile
  S* g;                  // of all tiles, the gradients
  S* ladj;               // [tiles][row blocks][kRowBlock], summed over steps; bwd: its gradient
  S* between;            // bwd that recomputes: [steps][tiles] of x, what leaves; of the last where it needs that
  S* after;              // bwd that does not: what leaves a step
  S *more, *row;         // of one step; where rows past the end go
  char* room;

  Group(const FlowWeights<S>& w, int64_t tiles, int64_t tile_blocks, Arena& arena)
      : size(tile_blocks * w.a.features * kRowBlock<S>), blocks(tile_blocks) {
    x = arena.take<S>(size_t((w.backward ? 1 : tiles) * size));
    g = w.backward ? arena.take<S>(size_t(tiles * size)) : nullptr;
    ladj = arena.take<S>(size_t(tiles * blocks * kRowBlock<S>));
    between = w.a.recomputes ? arena.take<S>(size_t((w.a.n - 1 + needs_last(w.a)) * tiles * size)) : nullptr;
    after = w.backward && !w.a.recomputes ? arena.take<S>(size_t(size)) : nullptr;
    more = arena.take<S>(size_t(blocks * kRowBlock<S>));
    row = arena.take<S>(size_t(w.a.features));
    size_t most = 0;
    for (int i = 0; i < w.a.n; ++i) {
      Arena counted(nullptr);
      w.with_room(i, blocks, counted, [](const auto&, const auto&) {});
      most = counted.used() > most ? counted.used() : most;
    }
    room = arena.take<char>(most);
  }
};

template <class S>
void fwd_group(const FlowWeights<S>& w, const RowTile* tiles, int64_t n, const Group<S>& group) {
  constexpr int R = kRowBlock<S>;
  const FlowArgs& a = w.a;
  const int64_t rows = group.blocks * R;
  for (int64_t t = 0; t < n; ++t)
    load_row_blocks(tiles[t], static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features,
                    group.x + t * group.size);
  for (int i = 0; i < a.n; ++i) {
    Arena own(group.room);
    w.with_room(i, group.blocks, own, [&](const auto& step, const auto& room) {
      for (int64_t t = 0; t < n; ++t) {
        S *const x = group.x + t * group.size, *const sum = group.ladj + t * rows;
        if (a.steps[i].x)
          store_row_blocks(tiles[t], x, a.features, nullptr, a.features, static_cast<S*>(a.steps[i].x), group.row);
        step.fwd(room, tiles[t], x, i == 0 ? sum : group.more);
        for (int64_t l = 0; i > 0 && l < tiles[t].template blocks<S>() * R; l += kLanes<S>) {
          using V = typename Simd<S>::V;
          store(sum + l, load<V>(sum + l) + load<V>(group.more + l));
        }
      }
    });
  }
  S* const last = static_cast<S*>(a.steps[a.n - 1].after);
  for (int64_t t = 0; t < n; ++t) {
    if (last) store_row_blocks(tiles[t], group.x + t * group.size, a.features, nullptr, a.features, last, group.row);
    store_row_blocks(tiles[t], group.x + t * group.size, a.features, a.order, a.features, static_cast<S*>(a.y),
                     group.row);
    memcpy(static_cast<S*>(a.ladj) + tiles[t].first, group.ladj + t * rows, size_t(tiles[t].rows) * sizeof(S));
  }
}

// What enters each step but the first, and leaves a last one that needs it, computed again.
template <class S>
void recompute(const FlowWeights<S>& w, const RowTile* tiles, int64_t n, const Group<S>& group) {
  const FlowArgs& a = w.a;
  for (int i = 0; i + 1 < a.n + needs_last(a); ++i) {
    Arena own(group.room);
    w.with_room(i, group.blocks, own, [&](const auto& step, const auto& room) {
      for (int64_t t = 0; t < n; ++t) {
        S* const to = group.between + (i * n + t) * group.size;
        if (i == 0)
          load_row_blocks(tiles[t], static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features, to);
        else
          memcpy(to, to - n * group.size, size_t(group.size) * sizeof(S));
        step.fwd(room, tiles[t], to, group.more);
      }
    });
  }
}

template <class S>
void bwd_group(const FlowWeights<S>& w, const RowTile* tiles, int64_t n, int part, bool first, const Group<S>& group) {
  const FlowArgs& a = w.a;
  const int64_t rows = group.blocks * kRowBlock<S>;
  for (int64_t t = 0; t < n; ++t) {
    S* const g = group.g + t * group.size;
    if (a.grad_y)
      load_row_blocks(tiles[t], static_cast<const S*>(a.grad_y), a.features, a.features, a.order, a.features, g);
    else
      memset(g, 0, size_t(group.size) * sizeof(S));
    load_grad_ladj(tiles[t], a.grad_ladj, group.ladj + t * rows);
  }
  if (a.recomputes) recompute(w, tiles, n, group);
  for (int i = a.n - 1; i >= 0; --i) {
    Arena own(group.room);
    const S* const from = static_cast<const S*>(i > 0 ? a.steps[i].x : a.x);
    const int64_t stride = i > 0 ? a.features : a.x_stride;
    const S* const to = static_cast<const S*>(i + 1 < a.n ? a.steps[i + 1].x : a.steps[i].after);
    w.with_room(i, group.blocks, own, [&](const auto& step, const auto& room) {
      for (int64_t t = 0; t < n; ++t) {
        const bool again = a.recomputes && i > 0;
        S* const x = again ? group.between + ((i - 1) * n + t) * group.size : group.x;
        if (!again) load_row_blocks(tiles[t], from, stride, a.features, nullptr, a.features, x);
        const S* after = nullptr;
        if (a.steps[i].kind == StepKind::sweep) {
          if (!a.recomputes) load_row_blocks(tiles[t], to, a.features, a.features, nullptr, a.features, group.after);
          after = a.recomputes ? group.between + (i * n + t) * group.size : group.after;
        }
        step.bwd(room, tiles[t], part, first && t == 0, x, after, group.ladj + t * rows, group.g + t * group.size);
      }
    });
  }
  for (int64_t t = 0; a.grad_x && t < n; ++t)
    store_row_blocks(tiles[t], group.g + t * group.size, a.features, nullptr, a.features, static_cast<S*>(a.grad_x),
                     group.row);
}

// Tiles of a group: of each thread's at most so many, and no more than stay in the cache.
template <class S>
int64_t group_size(const FlowArgs& a, const Deal<S>& deal, int64_t shares) {
  const int64_t inputs = a.recomputes ? a.n : 1;  // that a tile has at once
  const int64_t fit = kGroupBytes / (deal.tile_rows * a.features * inputs * int64_t(sizeof(S)) + 1);
  int64_t n = (deal.tiles + shares - 1) / shares;
  n = n > kMaxGroup ? kMaxGroup : n;
  n = n > fit ? fit : n;
  return n < 1 ? 1 : n;
}

template <class S>
void fwd(const FlowArgs& a, int threads) {
  const Deal<S> deal(widest(a), a.rows, work_of(a), threads);
  const FlowWeights<S> weights(a, false, deal.parts, threads);
  // Threads take groups as they finish: a few each, where there are several.
  const int64_t most = group_size(a, deal, deal.parts > 1 ? 4 * deal.parts : 1);
  deal.share([&](const auto& next) {
    const auto group =
        in_scratch(Scratch::tile, [&](Arena& arena) { return Group<S>(weights, most, deal.blocks(), arena); });
    RowTile tiles[kMaxGroup];
    for (int64_t n = 0;; n = 0) {
      while (n < most && next(tiles + n)) ++n;
      if (n == 0) return;
      fwd_group(weights, tiles, n, group);
    }
  });
}

template <class S>
void bwd(const FlowArgs& a, int threads) {
  const Deal<S> deal(widest(a), a.rows, work_of(a), threads);
  const FlowWeights<S> weights(a, true, deal.parts, threads);
  const int64_t most = group_size(a, deal, deal.parts);
  deal.run([&](int part, int64_t b, int64_t e) {
    const auto group =
        in_scratch(Scratch::tile, [&](Arena& arena) { return Group<S>(weights, most, deal.blocks(), arena); });
    for (int i = 0; i < a.n; ++i) weights.with(i, [&](const auto& step) { step.clear(part, b == e); });
    RowTile tiles[kMaxGroup];
    for (const int64_t begin = b; b < e;) {
      const bool first = b == begin;
      int64_t n = 0;
      for (; n < most && b < e; ++n, ++b) tiles[n] = deal.tile(b);
      bwd_group(weights, tiles, n, part, first, group);
    }
  });
  for (int i = 0; i < a.n; ++i) weights.with(i, [&](const auto& step) { step.finish(); });
}

void fwd_any(const FlowArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const FlowArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<FlowArgs> flow_kernels;
const Kernels<FlowArgs> flow_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
