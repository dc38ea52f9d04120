// The op of a map that works on row blocks, over the walk that all maps share: elements are a row block of one feature.
// Their params are transposed to where a network would leave them, so that the bits are those of fused layers.
#pragma once
#include "map_cpu.h"
#include "walk.h"

namespace fk::FK_ISA {
namespace {

// What a thread needs: the map, with room of its own, and the params of a block and their gradients, [param][lane].
template <class Scalar>
struct BlockRoom {
  using S = Scalar;
  static constexpr int N = 2 * kLanes<S>;
  static_assert(N == kRowBlock<S>);
  BlockMap<S> map = {};
  S *in = nullptr, *grads = nullptr;

  // A thread's first block makes what all of its blocks use.
  template <class Spec>
  void open(const Spec& spec) {
    if (map.map) return;
    in_scratch(Scratch::tile, [&](Arena& arena) {
      in = arena.take<S>(size_t(spec.params()) * N);
      grads = arena.take<S>(size_t(spec.params()) * N);
      map = block_map<S>(spec, arena);
      return 0;
    });
  }
};

// f(first param) for quads of params that together are all of them, the last two overlapping; false: there are fewer.
template <class S, class F>
FK_INLINE bool by_quads(int params, const F& f) {
  constexpr int Q = kQuad<S>;
  if (params < Q) return false;
  for (int p = 0; p < params; p += Q) f(p + Q <= params ? p : params - Q);
  return true;
}

template <class S>
FK_INLINE void load_block(const ParamLanes<S>& from, int params, S* to) {
  constexpr int L = kLanes<S>, Q = kQuad<S>, N = 2 * L;
  const EvenRows<S> rows{from.base, from.stride};
  const bool done = by_quads<S>(params, [&](int p) {
    for (int i = 0; i < 2; ++i) {
      typename Simd<S>::V quad[Q];
      rows.load_quad(i, p, quad);
      for (int j = 0; j < Q; ++j) store(to + (p + j) * N + i * L, quad[j]);
    }
  });
  if (done) return;
  for (int p = 0; p < params; ++p)
    for (int l = 0; l < N; ++l) to[p * N + l] = rows.at(l / L, p, l % L);
}

template <class S>
FK_INLINE void store_block(const S* from, int params, const ParamLanes<S>& to) {
  constexpr int L = kLanes<S>, Q = kQuad<S>, N = 2 * L;
  const EvenRows<S> rows{to.base, to.stride};
  const bool done = by_quads<S>(params, [&](int p) {
    for (int i = 0; i < 2; ++i) {
      typename Simd<S>::V quad[Q];
      for (int j = 0; j < Q; ++j) quad[j] = load<typename Simd<S>::V>(from + (p + j) * N + i * L);
      rows.store_quad(i, p, quad);
    }
  });
  if (done) return;
  for (int p = 0; p < params; ++p)
    for (int l = 0; l < N; ++l) rows.at(l / L, p, l % L) = from[p * N + l];
}

template <class S, class Spec>
RowMap<S, BlockRoom<S>> by_blocks(const Spec& spec) {
  using Map = RowMap<S, BlockRoom<S>>;
  using T = typename Map::T;
  using Params = typename Map::Params;
  using Room = BlockRoom<S>;
  constexpr int N = Room::N;
  return {&spec, spec.params(),
          [](const void* map, Params params, Room& room, T v, T* out, T* ladj) {
            const Spec& spec = *static_cast<const Spec*>(map);
            room.open(spec);
            load_block(params, spec.params(), room.in);
            alignas(64) S value[N];
            store_pair(value, v);
            LadjSum<T> sum;
            room.map.eval(room.map.map, {nullptr, 1, room.in, nullptr, 0, spec.params()}, value, value, sum);
            *out = load_pair(value);
            *ladj = sum.total();
          },
          [](const void* map, Params params, Params grads, Room& room, T v, T g_out, T g_ladj) {
            const Spec& spec = *static_cast<const Spec*>(map);
            room.open(spec);
            load_block(params, spec.params(), room.in);
            alignas(64) S value[N], g[N];
            store_pair(value, v);
            store_pair(g, g_out);
            room.map.grad(room.map.map, {nullptr, 1, room.in, nullptr, 0, spec.params()}, room.grads, value, g, g_ladj);
            store_block(room.grads, spec.params(), grads);
            return load_pair(g);
          }};
}

template <class Spec>
void fwd_by_blocks(const Spec& spec, const MapArgs& a, int threads) {
  by_types(a, [&](auto s, auto run) { decltype(run)::fwd(by_blocks<decltype(s)>(spec), a, threads); });
}
template <class Spec>
void bwd_by_blocks(const Spec& spec, const MapArgs& a, int threads) {
  by_types(a, [&](auto s, auto run) { decltype(run)::bwd(by_blocks<decltype(s)>(spec), a, threads); });
}

}  // namespace
}  // namespace fk::FK_ISA
