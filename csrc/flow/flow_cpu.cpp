// Whole flows, from x to y and ladj and back. A tile of rows stays in the cache from the first layer to the last. A
// thread with many tiles takes several through a layer before the next, so that a layer's weights are read for all of
// them at once: per row a tile needs the features alone, which are few.
#include "flow.h"

#include "../common/by_type.h"
#include "../common/kernels.h"
#include "../flow_layer/layer_tile.h"

namespace fk::FK_ISA {
namespace {

constexpr int64_t kGroupBytes = 256 << 10;  // features of the tiles that go through a layer together
constexpr int64_t kMaxGroup = 16;

// Everything of a call that is not one tile's: packed weights of all layers and, for backward, the threads' sums.
template <class S>
struct FlowWeights {
  int n;
  Call<S>* layers;

  FlowWeights(const FlowArgs& a, bool backward, int parts, int threads) : n(a.n) {
    const bool few = !backward && a.rows <= kFewRows;
    const auto lay = [&](Arena& arena, bool fill) {
      layers = arena.take<Call<S>>(size_t(n));
      for (int i = 0; i < n; ++i) {
        Call<S> one(a.steps[i].net);
        one.lay(arena, backward, few, parts, fill);
        if (fill) memcpy(static_cast<void*>(layers + i), &one, sizeof one);
      }
    };
    Arena counted(nullptr);
    lay(counted, false);
    Arena shared(workspace(Scratch::shared, counted.used()));
    lay(shared, true);
    for (int i = 0; i < n && !few; ++i) pack(layers[i].net, backward, threads);
  }
  const Net<S>& net(int i) const { return layers[i].net; }
};

template <class S>
int64_t widest(const FlowArgs& a) {
  int64_t most = 0;
  for (int i = 0; i < a.n; ++i) most = a.steps[i].net.widths() > most ? a.steps[i].net.widths() : most;
  return most;
}

inline int64_t work_of(const FlowArgs& a) {
  int64_t work = 0;
  for (int i = 0; i < a.n; ++i)
    work += a.steps[i].net.work() + a.steps[i].n_out * a.steps[i].map->params() * kParamWork;
  return work;
}

// What a thread needs for a group of tiles. Buffers of networks and maps lie in `room`, one layer's after another's.
template <class S>
struct Group {
  int64_t size, blocks;  // of x and g a tile; row blocks of a tile
  S* x;                  // [tiles][row blocks][features][kRowBlock], in the order of the flow's x; bwd: of one tile
  S* g;                  // of all tiles, the gradients
  S* ladj;               // [tiles][row blocks][kRowBlock], summed over layers; bwd: its gradient
  S *more, *row;         // of one layer; where rows past the end go
  char* room;

  Group(const FlowArgs& a, const FlowWeights<S>& w, int64_t tiles, int64_t tile_blocks, bool backward, Arena& arena)
      : size(tile_blocks * a.features * kRowBlock<S>), blocks(tile_blocks) {
    x = arena.take<S>(size_t((backward ? 1 : tiles) * size));
    g = backward ? arena.take<S>(size_t(tiles * size)) : nullptr;
    ladj = arena.take<S>(size_t(tiles * blocks * kRowBlock<S>));
    more = arena.take<S>(size_t(blocks * kRowBlock<S>));
    row = arena.take<S>(size_t(a.features));
    size_t most = 0;
    for (int i = 0; i < a.n; ++i) {
      Arena counted(nullptr);
      const Tile<S> tile(w.net(i), blocks, backward, counted);
      by_map<S>(*a.steps[i].map, [&](auto m) { typename decltype(m)::Map(*a.steps[i].map, counted); });
      most = counted.used() > most ? counted.used() : most;
    }
    room = arena.take<char>(most);
  }

  // Calls f(layer's network, its buffers, its columns, its map).
  template <class F>
  void in_layer(const FlowArgs& a, const FlowWeights<S>& w, int i, bool backward, const F& f) const {
    const FlowStep& step = a.steps[i];
    Arena own(room);
    const Tile<S> tile(w.net(i), blocks, backward, own);
    const TileColumns columns = {a.features, step.in, step.out, step.n_out};
    by_map<S>(*step.map, [&](auto m) {
      const typename decltype(m)::Map map(*step.map, own);
      f(w.net(i), tile, columns, map);
    });
  }
};

template <class S>
void fwd_group(const FlowArgs& a, const FlowWeights<S>& w, const RowTile* tiles, int64_t n, const Group<S>& group) {
  constexpr int R = kRowBlock<S>;
  const int64_t rows = group.blocks * R;
  for (int64_t t = 0; t < n; ++t)
    load_row_blocks(tiles[t], static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features,
                    group.x + t * group.size);
  for (int i = 0; i < a.n; ++i)
    group.in_layer(
        a, w, i, false, [&](const Net<S>& net, const Tile<S>& tile, const TileColumns& columns, const auto& map) {
          for (int64_t t = 0; t < n; ++t) {
            S *const x = group.x + t * group.size, *const sum = group.ladj + t * rows;
            const int64_t blocks = tiles[t].template blocks<S>();
            if (a.steps[i].x)
              store_row_blocks(tiles[t], x, a.features, nullptr, a.features, static_cast<S*>(a.steps[i].x), group.row);
            gather_input(columns, net.layer[0], blocks, x, tile.a[0]);
            forward_tile(net, tiles[t], tile, net.spec.n);
            map_features(columns, map, a.steps[i].map->params(), net.last(), blocks, tile.a[net.spec.n], x,
                         i == 0 ? sum : group.more);
            for (int64_t l = 0; i > 0 && l < blocks * R; l += kLanes<S>) {
              using V = typename Simd<S>::V;
              store(sum + l, load<V>(sum + l) + load<V>(group.more + l));
            }
          }
        });
  for (int64_t t = 0; t < n; ++t) {
    store_row_blocks(tiles[t], group.x + t * group.size, a.features, a.order, a.features, static_cast<S*>(a.y),
                     group.row);
    memcpy(static_cast<S*>(a.ladj) + tiles[t].first, group.ladj + t * rows, size_t(tiles[t].rows) * sizeof(S));
  }
}

template <class S>
void bwd_group(const FlowArgs& a, const FlowWeights<S>& w, const RowTile* tiles, int64_t n, const Sums<S>* const* sums,
               bool first, const Group<S>& group) {
  const int64_t rows = group.blocks * kRowBlock<S>;
  for (int64_t t = 0; t < n; ++t) {
    S* const g = group.g + t * group.size;
    if (a.grad_y)
      load_row_blocks(tiles[t], static_cast<const S*>(a.grad_y), a.features, a.features, a.order, a.features, g);
    else
      memset(g, 0, size_t(group.size) * sizeof(S));
    load_grad_ladj(tiles[t], a.grad_ladj, group.ladj + t * rows);
  }
  for (int i = a.n - 1; i >= 0; --i)
    group.in_layer(a, w, i, true,
                   [&](const Net<S>& net, const Tile<S>& tile, const TileColumns& columns, const auto& map) {
                     const S* const from = static_cast<const S*>(i > 0 ? a.steps[i].x : a.x);
                     const int64_t stride = i > 0 ? a.features : a.x_stride;
                     for (int64_t t = 0; t < n; ++t) {
                       S *const x = group.x, *const g = group.g + t * group.size;
                       const int64_t blocks = tiles[t].template blocks<S>();
                       load_row_blocks(tiles[t], from, stride, a.features, nullptr, a.features, x);
                       gather_input(columns, net.layer[0], blocks, x, tile.a[0]);
                       forward_tile(net, tiles[t], tile, net.spec.n, true);
                       map_gradients(columns, map, a.steps[i].map->params(), net.last(), blocks, tile.a[net.spec.n], x,
                                     group.ladj + t * rows, tile.g[0], g);
                       const S* g_in = backward_tile(net, tiles[t], tile, sums[i], i > 0 || a.grad_x, first && t == 0);
                       if (g_in) add_input_gradient(columns, net.layer[0], blocks, g_in, g);
                     }
                   });
  for (int64_t t = 0; a.grad_x && t < n; ++t)
    store_row_blocks(tiles[t], group.g + t * group.size, a.features, nullptr, a.features, static_cast<S*>(a.grad_x),
                     group.row);
}

// Tiles of a group: of each thread's at most so many, and no more than stay in the cache.
template <class S>
int64_t group_size(const FlowArgs& a, const Deal<S>& deal, int64_t shares) {
  const int64_t fit = kGroupBytes / (deal.tile_rows * a.features * int64_t(sizeof(S)) + 1);
  int64_t n = (deal.tiles + shares - 1) / shares;
  n = n > kMaxGroup ? kMaxGroup : n;
  n = n > fit ? fit : n;
  return n < 1 ? 1 : n;
}

template <class S>
void fwd(const FlowArgs& a, int threads) {
  const Deal<S> deal(widest<S>(a), a.rows, work_of(a), threads);
  const FlowWeights<S> weights(a, false, deal.parts, threads);
  // Threads take groups as they finish: a few each, where there are several.
  const int64_t most = group_size(a, deal, deal.parts > 1 ? 4 * deal.parts : 1);
  deal.share([&](const auto& next) {
    const auto group = in_scratch(
        Scratch::tile, [&](Arena& arena) { return Group<S>(a, weights, most, deal.blocks(), false, arena); });
    RowTile tiles[kMaxGroup];
    for (int64_t n = 0;; n = 0) {
      while (n < most && next(tiles + n)) ++n;
      if (n == 0) return;
      fwd_group(a, weights, tiles, n, group);
    }
  });
}

template <class S>
void bwd(const FlowArgs& a, int threads) {
  const Deal<S> deal(widest<S>(a), a.rows, work_of(a), threads);
  const FlowWeights<S> weights(a, true, deal.parts, threads);
  const int64_t most = group_size(a, deal, deal.parts);
  deal.run([&](int part, int64_t b, int64_t e) {
    struct Part {
      Group<S> group;
      const Sums<S>** sums;
    };
    const auto own = in_scratch(Scratch::tile, [&](Arena& arena) {
      const Sums<S>** const sums = arena.take<const Sums<S>*>(size_t(a.n));
      return Part{Group<S>(a, weights, most, deal.blocks(), true, arena), sums};
    });
    for (int i = 0; i < a.n; ++i) own.sums[i] = weights.layers[i].clear(part, b == e);
    RowTile tiles[kMaxGroup];
    for (const int64_t begin = b; b < e;) {
      const bool first = b == begin;
      int64_t n = 0;
      for (; n < most && b < e; ++n, ++b) tiles[n] = deal.tile(b);
      bwd_group(a, weights, tiles, n, own.sums, first, own.group);
    }
  });
  for (int i = 0; i < a.n; ++i) weights.layers[i].finish(deal.parts, threads);
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
