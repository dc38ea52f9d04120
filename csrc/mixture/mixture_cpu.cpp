// SIMD loops of the mixture map.
#include "../common/kernels.h"
#include "../univariate/map_cpu.h"
#include "../univariate/walk.h"
#include "mixture_lanes.h"

namespace fk::FK_ISA {
namespace {

// One feature on a row block, as fused layers call it.
template <class S>
struct MixtureMap {
  using T = Pair<typename Simd<S>::V>;
  MixtureConsts<S> c;
  MixtureRoom<S>* room;

  MixtureMap(const MixtureSpec& s, Arena& arena) : c(s), room(arena.take<MixtureRoom<S>>(1)) {}

  static FK_INLINE ParamLanes<S> lanes_of(const ParamRows<S>& p) { return {p.block, 0, p.rank, p.first}; }

  FK_INLINE void eval(const ParamRows<S>& params, T v, T* out, T* ladj) const {
    eval_mixture(c, lanes_of(params), *room, v, out, ladj);
  }
  FK_INLINE T grad(const ParamRows<S>& params, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    return grad_mixture(c, lanes_of(params), lanes_of(grads), *room, v, g_out, g_ladj);
  }
};

template <class S>
RowMap<S, MixtureRoom<S>> row_map(const MixtureConsts<S>& consts) {
  using Map = RowMap<S, MixtureRoom<S>>;
  using T = typename Map::T;
  using Params = typename Map::Params;
  return {&consts, consts.params,
          [](const void* map, Params params, MixtureRoom<S>& room, T v, T* out, T* ladj) {
            eval_mixture(*static_cast<const MixtureConsts<S>*>(map), params, room, v, out, ladj);
          },
          [](const void* map, Params params, Params grads, MixtureRoom<S>& room, T v, T g_out, T g_ladj) {
            return grad_mixture(*static_cast<const MixtureConsts<S>*>(map), params, grads, room, v, g_out, g_ladj);
          }};
}

void fwd_any(const MixtureSpec& spec, const MapArgs& a, int threads) {
  by_types(a, [&](auto s, auto run) {
    const MixtureConsts<decltype(s)> consts(spec);
    decltype(run)::fwd(row_map(consts), a, threads);
  });
}
void bwd_any(const MixtureSpec& spec, const MapArgs& a, int threads) {
  by_types(a, [&](auto s, auto run) {
    const MixtureConsts<decltype(s)> consts(spec);
    decltype(run)::bwd(row_map(consts), a, threads);
  });
}

}  // namespace

template <class S>
BlockMap<S> block_map(const MixtureSpec& spec, Arena& arena) {
  return block_map_of<S, MixtureMap<S>>(spec, arena);
}
template BlockMap<float> block_map(const MixtureSpec&, Arena&);
template BlockMap<double> block_map(const MixtureSpec&, Arena&);

extern const Kernels<MixtureSpec, MapArgs> mixture_kernels;
const Kernels<MixtureSpec, MapArgs> mixture_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
