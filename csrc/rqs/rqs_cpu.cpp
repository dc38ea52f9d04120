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

template <class S, class C>
RowMap<S, Blocks<S>> row_map(const C& consts) {
  using Map = RowMap<S, Blocks<S>>;
  using T = typename Map::T;
  using Params = typename Map::Params;
  return {&consts, consts.params,
          [](const void* map, Params params, Blocks<S>& room, T v, T* out, T* ladj) {
            const C& c = *static_cast<const C*>(map);
            eval_blocks(c, params, room.b, c.inverse, v, out, ladj);
          },
          [](const void* map, Params params, Params grads, Blocks<S>& room, T v, T g_out, T g_ladj) {
            const C& c = *static_cast<const C*>(map);
            return grad_blocks(c, params, grads, room.b, c.inverse, v, g_out, g_ladj);
          }};
}

// A spline's constants and its direction.
template <class S, bool Clip>
struct Directed : Consts<S, Clip> {
  bool inverse;
  explicit Directed(const RqsSpec& s) : Consts<S, Clip>(s), inverse(s.inverse) {}
};

template <class S, class F>
void by_setting(const RqsSpec& s, const F& f) {
  if (s.clip_size != 0) {
    const Directed<S, true> consts(s);
    f(row_map<S>(consts));
  } else {
    const Directed<S, false> consts(s);
    f(row_map<S>(consts));
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
