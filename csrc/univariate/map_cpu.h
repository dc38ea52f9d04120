// Univariate maps on one row block: parameters arrive as [param][kRowBlock rows].
#pragma once
#include "../affine/affine_lanes.h"
#include "../common/arena.h"
#include "../common/by_type.h"
#include "../net/gemm.h"
#include "../rqs/rqs_blocks.h"
#include "map.h"

namespace fk::FK_ISA {

// The parameters of one feature: param p lies in row(p) of a row block.
template <class S>
struct ParamRows {
  S* block;
  const int32_t* rank;
  int64_t first;

  FK_INLINE S* row(int p) const { return block + (rank ? rank[first + p] : first + p) * kRowBlock<S>; }
};

template <class S, bool Clip>
struct SplineMap {
  using T = Pair<typename Simd<S>::V>;
  Consts<S, Clip> c;
  Block<S>* blocks;  // [2]
  bool inverse;

  SplineMap(const UnivariateMap& m, Arena& arena) : c(m.rqs), blocks(arena.take<Block<S>>(2)), inverse(m.rqs.inverse) {}

  static FK_INLINE ParamLanes<S> lanes_of(const ParamRows<S>& p) { return {p.block, 0, p.rank, p.first}; }

  void eval(const ParamRows<S>& params, T v, T* out, T* ladj) const {
    eval_blocks(c, lanes_of(params), blocks, inverse, v, out, ladj);
  }

  // Puts the gradients of the parameters into `grads` and returns that of v.
  T grad(const ParamRows<S>& params, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    return grad_blocks(c, lanes_of(params), lanes_of(grads), blocks, inverse, v, g_out, g_ladj);
  }
};

template <class S>
struct AffineMap {
  using T = Pair<typename Simd<S>::V>;
  Affine<S> map;
  bool additive;
  int at_logit, at_shift;

  AffineMap(const UnivariateMap& m, Arena&)
      : map(m.affine),
        additive(m.affine.scale == AffineScale::additive),
        at_logit(m.affine.shift_first),
        at_shift(!additive && !m.affine.shift_first) {}

  FK_INLINE T logit(const ParamRows<S>& p) const { return additive ? T{} : load_pair(p.row(at_logit)); }
  FK_INLINE T shift(const ParamRows<S>& p) const { return load_pair(p.row(at_shift)); }

  void eval(const ParamRows<S>& params, T v, T* out, T* ladj) const {
    map.eval(logit(params), shift(params), v, out, ladj);
  }

  T grad(const ParamRows<S>& params, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    T g_logit, g_shift;
    const T g_v = map.grad(logit(params), shift(params), v, g_out, g_ladj, &g_logit, &g_shift);
    store_pair(grads.row(at_shift), g_shift);
    if (!additive) store_pair(grads.row(at_logit), g_logit);
    return g_v;
  }
};

// Multiply-adds that take about as long as one parameter of a map.
constexpr int64_t kParamWork = 32;

template <class M>
struct MapType {
  using Map = M;
};

// Calls f with the type of a map on numbers of type S as that of a value: f(MapType<..>()).
template <class S, class F>
void by_map(const UnivariateMap& m, const F& f) {
  if (m.is_affine)
    f(MapType<AffineMap<S>>());
  else if (m.rqs.clip_size != 0)
    f(MapType<SplineMap<S, true>>());
  else
    f(MapType<SplineMap<S, false>>());
}

// The same with the type of a layer's numbers: f(S(), MapType<..>()).
template <class F>
void by_map(DType type, const UnivariateMap& m, const F& f) {
  by_scalar(type, [&](auto s) { by_map<decltype(s)>(m, [&](auto map) { f(s, map); }); });
}

// A compensated sum: a row's ladj may have a thousand terms.
template <class T>
struct LadjSum {
  T sum = {}, lost = {};

  FK_INLINE void add(T v) {
    const T s = sum + v, b = s - sum;
    lost = lost + ((sum - (s - b)) + (v - b));
    sum = s;
  }
  FK_INLINE T total() const { return sum + lost; }
};

}  // namespace fk::FK_ISA
