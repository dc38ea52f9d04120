// Univariate maps on one row block, [param or feature][kRowBlock rows]. Fused layers know none of them: a map is two
// functions, compiled in its own <map>_cpu.cpp, and its constants.
#pragma once
#include "../common/arena.h"
#include "../common/by_type.h"
#include "../common/pair.h"
#include "../net/gemm.h"
#include "map.h"

namespace fk::FK_ISA {

// A compensated sum: a row's ladj may have a thousand terms.
template <class T>
struct LadjSum {
  T sum = {}, lost = {};

  FK_INLINE void add(T v) {
    const T s = sum + v, b = s - sum;
    lost = lost + ((sum - (s - b)) + (v - b));
    sum = s;
  }
  // Of an infinite sum nothing is lost.
  FK_INLINE T total() const {
    const T exact = sum + lost;
    return select(exact == exact, exact, sum);
  }
};

// The parameters of one feature: param p lies in row(p) of a row block.
template <class S>
struct ParamRows {
  S* block;
  const int32_t* rank;
  int64_t first;

  FK_INLINE S* row(int p) const { return block + (rank ? rank[first + p] : first + p) * kRowBlock<S>; }
};

// Features that are mapped: feature i of n lies in row at[i] of its row block, its parameters come from i * n_params
// on.
template <class S>
struct MappedFeatures {
  const int32_t* at;  // null: i
  int64_t n;
  S* params;
  const int32_t* rank;
  int64_t first;
  int n_params;

  FK_INLINE int64_t place(int64_t i) const { return (at ? at[i] : i) * kRowBlock<S>; }
  FK_INLINE ParamRows<S> params_of(int64_t i) const { return {params, rank, first + i * n_params}; }
  // The same rows of another block.
  FK_INLINE ParamRows<S> grads_of(int64_t i, S* grads) const { return {grads, rank, first + i * n_params}; }
};

template <class S>
struct BlockMap {
  using T = Pair<typename Simd<S>::V>;
  const void* map;  // constants, and room to work in
  // Maps features of v to out, which may be the same block, and adds the terms of ladj.
  void (*eval)(const void* map, const MappedFeatures<S>&, const S* v, S* out, LadjSum<T>& ladj);
  // The way back: g, the gradient of what was mapped, becomes that of v; grads get those of the parameters.
  void (*grad)(const void* map, const MappedFeatures<S>&, S* grads, const S* v, S* g, T g_ladj);
};

// Of a map M(settings, arena) that has eval and grad of a pair of vectors.
template <class S, class M, class Spec>
BlockMap<S> block_map_of(const Spec& spec, Arena& arena) {
  using T = typename BlockMap<S>::T;
  return {placed<M>(arena, spec),
          [](const void* map, const MappedFeatures<S>& f, const S* v, S* out, LadjSum<T>& ladj) {
            const M& m = *static_cast<const M*>(map);
            LadjSum<T> sum = ladj;
            for (int64_t i = 0; i < f.n; ++i) {
              T y, term;
              m.eval(f.params_of(i), load_pair(v + f.place(i)), &y, &term);
              store_pair(out + f.place(i), y);
              sum.add(term);
            }
            ladj = sum;
          },
          [](const void* map, const MappedFeatures<S>& f, S* grads, const S* v, S* g, T g_ladj) {
            const M& m = *static_cast<const M*>(map);
            for (int64_t i = 0; i < f.n; ++i) {
              S* const at = g + f.place(i);
              store_pair(
                  at, m.grad(f.params_of(i), f.grads_of(i, grads), load_pair(v + f.place(i)), load_pair(at), g_ladj));
            }
          }};
}

// The map of these settings; compiled in <map>_cpu.cpp.
#define FK_BLOCK_MAP(kind, Spec) \
  template <class S>             \
  BlockMap<S> block_map(const Spec&, Arena&);
FK_MAPS(FK_BLOCK_MAP)
#undef FK_BLOCK_MAP

template <class S>
BlockMap<S> block_map(const UnivariateMap& m, Arena& arena) {
  return m.visit([&](const auto& spec) { return block_map<S>(spec, arena); });
}

// Multiply-adds that take about as long as one parameter of a map.
constexpr int64_t kParamWork = 32;

}  // namespace fk::FK_ISA
