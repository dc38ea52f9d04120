// Flow layers, from x to y and ladj and back: the parameters of the maps never leave the cache.
#include "../common/kernels.h"
#include "../net/net_tile.h"
#include "../univariate/map_cpu.h"
#include "flow_layer.h"

namespace fk::FK_ISA {
namespace {

// What a thread needs for its tiles.
template <class S, class Map>
struct LayerTile {
  Tile<S> net;
  S* x;  // [row blocks][features][kRowBlock], in memory's order
  S* g;  // the same, of gradients
  S* row;
  Map map;

  LayerTile(const Net<S>& n, const FlowLayerArgs& a, int64_t blocks, bool backward, Arena& arena)
      : net(n, blocks, backward, arena),
        x(arena.take<S>(size_t(blocks * a.features * kRowBlock<S>))),
        g(backward ? arena.take<S>(size_t(blocks * a.features * kRowBlock<S>)) : nullptr),
        row(arena.take<S>(size_t(a.features))),
        map(a.map, arena) {}
};

template <class S>
void gather_input(const FlowLayerArgs& a, const Packed<S>& p, int64_t blocks, const S* x, S* to) {
  for (int64_t s = 0; s < blocks; ++s, x += a.features * kRowBlock<S>, to += p.in_width * kRowBlock<S>)
    for (int64_t k = 0; k < p.n_in; ++k)
      memcpy(to + (p.in_rank ? p.in_rank[k] : k) * kRowBlock<S>, x + a.in_columns[k] * kRowBlock<S>,
             kRowBlock<S> * sizeof(S));
}

template <class S, class Map>
void load_and_condition(const FlowLayerArgs& a, const Net<S>& net, const RowTile& rows, LayerTile<S, Map>& t,
                        bool again) {
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features, t.x);
  gather_input(a, net.layer[0], rows.blocks<S>(), t.x, t.net.a[0]);
  forward_tile(net, rows, t.net, net.spec.n, again);
}

template <class S, class Map>
void fwd_tile(const FlowLayerArgs& a, const Net<S>& net, const RowTile& rows, LayerTile<S, Map>& t) {
  using T = typename Map::T;
  load_and_condition(a, net, rows, t, false);
  const Packed<S>& last = net.last();
  const int P = a.map.params();
  S* ladj = static_cast<S*>(a.ladj) + rows.first;
  for (int64_t s = 0; s < rows.blocks<S>(); ++s) {
    S *x = t.x + s * a.features * kRowBlock<S>, *params = t.net.a[net.spec.n] + s * last.out_width * kRowBlock<S>;
    LadjSum<T> sum;
    for (int64_t i = 0; i < a.n_columns; ++i) {
      S* at = x + a.columns[i] * kRowBlock<S>;
      T out, term;
      t.map.eval({params, last.out_rank, i * P}, load_pair(at), &out, &term);
      store_pair(at, out);
      sum.add(term);
    }
    alignas(64) S total[kRowBlock<S>];
    store_pair(total, sum.total());
    const int64_t used = rows.rows - s * kRowBlock<S>;
    memcpy(ladj + s * kRowBlock<S>, total, size_t(used < kRowBlock<S> ? used : kRowBlock<S>) * sizeof(S));
  }
  store_row_blocks(rows, t.x, a.features, nullptr, a.features, static_cast<S*>(a.y), t.row);
}

template <class S, class Map>
void bwd_tile(const FlowLayerArgs& a, const Net<S>& net, const RowTile& rows, const Sums<S>* sums,
              LayerTile<S, Map>& t) {
  using T = typename Map::T;
  load_and_condition(a, net, rows, t, true);
  const Packed<S>&first = net.layer[0], &last = net.last();
  const int P = a.map.params();
  const int64_t blocks = rows.blocks<S>(), size = a.features * kRowBlock<S>;
  if (a.grad_y)
    load_row_blocks(rows, static_cast<const S*>(a.grad_y), a.features, a.features, nullptr, a.features, t.g);
  else
    memset(t.g, 0, size_t(blocks * size) * sizeof(S));
  const S* grad_ladj = static_cast<const S*>(a.grad_ladj);
  for (int64_t s = 0; s < blocks; ++s) {
    S *x = t.x + s * size, *g = t.g + s * size;
    S* params = t.net.a[net.spec.n] + s * last.out_width * kRowBlock<S>;
    S* grads = t.net.g[0] + s * last.out_width * kRowBlock<S>;
    alignas(64) S gl[kRowBlock<S>] = {};
    for (int64_t l = 0; grad_ladj && l < kRowBlock<S> && s * kRowBlock<S> + l < rows.rows; ++l)
      gl[l] = grad_ladj[rows.first + s * kRowBlock<S> + l];
    const T g_ladj = load_pair(gl);
    for (int64_t i = 0; i < a.n_columns; ++i) {
      const int64_t at = a.columns[i] * kRowBlock<S>;
      const T g_v = t.map.grad({params, last.out_rank, i * P}, {grads, last.out_rank, i * P}, load_pair(x + at),
                               load_pair(g + at), g_ladj);
      store_pair(g + at, g_v);
    }
  }
  const S* g_in = backward_tile(net, rows, t.net, sums, a.grad_x != nullptr);
  if (!g_in) return;
  for (int64_t s = 0; s < blocks; ++s)
    for (int64_t k = 0; k < first.n_in; ++k) {
      S* at = t.g + s * size + a.in_columns[k] * kRowBlock<S>;
      const S* more = g_in + (s * first.in_width + (first.in_rank ? first.in_rank[k] : k)) * kRowBlock<S>;
      store_pair(at, load_pair(at) + load_pair(more));
    }
  store_row_blocks(rows, t.g, a.features, nullptr, a.features, static_cast<S*>(a.grad_x), t.row);
}

template <class S, class Map>
void run(const FlowLayerArgs& a, int threads, bool backward) {
  const int64_t work = a.net.work() + a.n_columns * a.map.params() * kParamWork;
  const Deal<S> deal(a.net, a.rows, work, threads);
  const Call<S> call(a.net, backward, a.rows, deal.parts, threads);
  const Net<S>& net = call.net;
  const auto make_tile = [&] {
    return in_scratch(Scratch::tile,
                      [&](Arena& arena) { return LayerTile<S, Map>(net, a, deal.blocks(), backward, arena); });
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
  by_map(a.type, a.map, [&](auto s, auto map) { run<decltype(s), typename decltype(map)::Map>(a, threads, false); });
}
void bwd_any(const FlowLayerArgs& a, int threads) {
  by_map(a.type, a.map, [&](auto s, auto map) { run<decltype(s), typename decltype(map)::Map>(a, threads, true); });
}

}  // namespace

extern const Kernels<FlowLayerArgs> flow_layer_kernels;
const Kernels<FlowLayerArgs> flow_layer_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
