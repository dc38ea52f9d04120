// SIMD loops of the rational splines: one lane per element (row, feature). Blocks of elements are transposed from
// memory's [element][param] into [param][lane], and everything from the raw logits to y, ladj or the gradients happens
// there.
#include "../common/kernels.h"
#include "../univariate/walk.h"
#include "rqs.h"
#include "rqs_map.h"

namespace fk::FK_ISA {

FK_SPLINE_BLOCKS(, ConstsF);
FK_SPLINE_BLOCKS(, ConstsFClip);
FK_SPLINE_BLOCKS(, ConstsD);
FK_SPLINE_BLOCKS(, ConstsDClip);

template <class S>
BlockMap<S> block_map(const RqsSpec& spec, Arena& arena) {
  if (spec.clip_size != 0) return block_map_of<S, SplineMap<S, true>>(spec, arena);
  return block_map_of<S, SplineMap<S, false>>(spec, arena);
}
template BlockMap<float> block_map(const RqsSpec&, Arena&);
template BlockMap<double> block_map(const RqsSpec&, Arena&);

namespace {

// The two blocks of lanes that a thread needs.
template <class S>
struct Blocks {
  Block<S> b[2];
};

// A spline's constants and its direction. Loops take the constants alone: of another type they'd be compiled once more.
template <class S, bool Clip>
struct Directed {
  Consts<S, Clip> consts;
  bool inverse;
};

template <class S, bool Clip>
RowMap<S, Blocks<S>> row_map(const Directed<S, Clip>& spline) {
  using Map = RowMap<S, Blocks<S>>;
  using T = typename Map::T;
  using Params = typename Map::Params;
  return {&spline, spline.consts.params,
          [](const void* map, Params params, Blocks<S>& room, T v, T* out, T* ladj) {
            const auto& [c, inverse] = *static_cast<const Directed<S, Clip>*>(map);
            eval_blocks(c, params, room.b, inverse, v, out, ladj);
          },
          [](const void* map, Params params, Params grads, Blocks<S>& room, T v, T g_out, T g_ladj) {
            const auto& [c, inverse] = *static_cast<const Directed<S, Clip>*>(map);
            return grad_blocks(c, params, grads, room.b, inverse, v, g_out, g_ladj);
          }};
}

template <class S, class F>
void by_setting(const RqsSpec& s, const F& f) {
  if (s.clip_size != 0) {
    const Directed<S, true> spline{Consts<S, true>(s), s.inverse};
    f(row_map<S>(spline));
  } else {
    const Directed<S, false> spline{Consts<S, false>(s), s.inverse};
    f(row_map<S>(spline));
  }
}

void fwd_any(const RqsSpec& spec, const RqsArgs& a, int threads) {
  by_types(a, [&](auto s, auto run) {
    by_setting<decltype(s)>(spec, [&](const auto& map) { decltype(run)::fwd(map, a, threads); });
  });
}
void bwd_any(const RqsSpec& spec, const RqsArgs& a, int threads) {
  by_types(a, [&](auto s, auto run) {
    by_setting<decltype(s)>(spec, [&](const auto& map) { decltype(run)::bwd(map, a, threads); });
  });
}

}  // namespace

extern const Kernels<RqsSpec, RqsArgs> rqs_kernels;
const Kernels<RqsSpec, RqsArgs> rqs_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
