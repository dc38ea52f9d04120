// Where the params of two blocks of lanes lie in memory, or their gradients: a row of params a lane, as tensors have
// them, or a strip of lanes a param, as the networks of fused layers leave them.
#pragma once
#include "../common/transpose.h"

namespace fk::FK_ISA {

// `quad` are kQuad params of block i, from p on. Stride: from row to row; 0: known only when running.
template <class S, int Stride = 0>
struct EvenRows {
  using V = typename Simd<S>::V;
  S* base;
  int64_t given_stride;

  FK_INLINE int64_t stride() const { return Stride ? Stride : given_stride; }
  FK_INLINE S& at(int i, int p, int l) const { return base[(i * kLanes<S> + l) * stride() + p]; }
  FK_INLINE void load_quad(int i, int p, V* out) const {
    S* row[kLanes<S>];
    addresses(i, row);
    gather_block(row, p, out);
  }
  FK_INLINE void store_quad(int i, int p, const V* in) const {
    S* row[kLanes<S>];
    addresses(i, row);
    scatter_block(row, p, in);
  }

 private:
  // Four rows from each of a few bases: none has to be read from memory.
  FK_INLINE void addresses(int i, S** row) const {
    S* four = base + i * kLanes<S> * stride();
    for (int l = 0; l < kLanes<S>; ++l) {
      if (l > 0 && l % 4 == 0) four += 4 * stride();
      row[l] = four + l % 4 * stride();
    }
  }
};

template <class S>
struct Strips {
  using V = typename Simd<S>::V;
  S* base;              // [param][lanes of both blocks]
  const int32_t* rank;  // in which order they lie; null: their own
  int64_t first;        // the number of the first one

  FK_INLINE S* strip(int i, int p) const {
    return base + (rank ? rank[first + p] : first + p) * (2 * kLanes<S>)+i * kLanes<S>;
  }
  FK_INLINE S& at(int i, int p, int l) const { return strip(i, p)[l]; }
  FK_INLINE void load_quad(int i, int p, V* out) const {
    for (int j = 0; j < kQuad<S>; ++j) out[j] = load<V>(strip(i, p + j));
  }
  FK_INLINE void store_quad(int i, int p, const V* in) const {
    for (int j = 0; j < kQuad<S>; ++j) store(strip(i, p + j), in[j]);
  }
};

// One of the two.
template <class S>
struct ParamLanes {
  S* base;
  int64_t stride = 0;  // 0: strips
  const int32_t* rank = nullptr;
  int64_t first = 0;

  FK_INLINE Strips<S> strips() const { return {base, rank, first}; }

  template <class F>
  FK_INLINE void visit(const F& f) const {
    if (stride)
      f(EvenRows<S>{base, stride});
    else
      f(strips());
  }
};

// N params, the last quads overlapping. Without a loop: one over registers would keep them in memory.
template <int N, int J = 0, class P, class V>
FK_INLINE void load_run(const P& params, int i, int p, V* out) {
  constexpr int Q = kQuad<typename ScalarOf<V>::S>, at = J <= N - Q ? J : N - Q;
  static_assert(N >= Q);
  params.load_quad(i, p + at, out + at);
  if constexpr (J + Q < N) load_run<N, J + Q>(params, i, p, out);
}
template <int N, int J = 0, class P, class V>
FK_INLINE void store_run(const P& params, int i, int p, const V* in) {
  constexpr int Q = kQuad<typename ScalarOf<V>::S>, at = J <= N - Q ? J : N - Q;
  static_assert(N >= Q);
  params.store_quad(i, p + at, in + at);
  if constexpr (J + Q < N) store_run<N, J + Q>(params, i, p, in);
}

}  // namespace fk::FK_ISA
