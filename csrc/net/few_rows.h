// Products for a call of a few rows, as when people draw one sample at a time: packing the weights would take longer
// than all else, so they are read where they lie, a unit being a scalar product along its row of weights.
#pragma once
#include "pack.h"

namespace fk::FK_ISA {

// Lanes of a row block that hold rows of such a call, in whole vectors; what the others hold is nobody's.
template <class S>
constexpr int kFewLanes = kFewRows > kLanes<S> ? kRowBlock<S> : kLanes<S>;

// Copies inputs [begin, end) of a row block to few_in.
template <class S>
FK_INLINE void mirror(const Packed<S>& p, const S* in, int64_t begin, int64_t end, int64_t rows) {
  for (int64_t k = begin; k < end; ++k)
    for (int64_t r = 0; r < rows; ++r) p.few_in[r * p.few_stride + p.in_at(k)] = in[k * kRowBlock<S> + r];
}

// sums[r] = what unit j gets from the first `seen` inputs in row r, for N rows. The others may be anything.
template <int N, bool Ranked, class S>
FK_INLINE void few_products(const Packed<S>& p, int64_t j, int64_t seen, S* sums) {
  using V = typename Simd<S>::V;
  using I = typename Simd<S>::I;
  using Int = typename Simd<S>::Int;
  constexpr int L = kLanes<S>, U = N == 1 ? 4 : 1;  // chains enough to fill the pipeline
  const S* const w = p.row(j);
  // The next unit's weights come from memory meanwhile: they lie where no processor would look for them.
  const S* const next = p.row(j + 1 < p.n_out ? j + 1 : j);
  const int64_t n = Ranked ? p.n_in : seen;
  V acc[U][N] = {};
  const auto step = [&](int64_t k, V* sum) {
    const V wk = load<V>(w + k);
    __builtin_prefetch(next + k);
    for (int r = 0; r < N; ++r) {
      const V more = sum[r] + wk * load<V>(p.few_in + r * p.few_stride + k);
      if constexpr (Ranked) {
        I rank;
        memcpy(&rank, p.few_rank + k, sizeof rank);
        sum[r] = select(rank < Int(seen), more, sum[r]);
      } else {
        sum[r] = more;
      }
    }
  };
  int64_t k = 0;
  for (; k + U * L <= n; k += U * L)
    for (int u = 0; u < U; ++u) step(k + u * L, acc[u]);
  for (; k + L <= n; k += L) step(k, acc[0]);
  for (int r = 0; r < N; ++r) {
    V total = acc[0][r];
    for (int u = 1; u < U; ++u) total += acc[u][r];
    sums[r] = sum_lanes(total);
  }
  for (; k < n; ++k)
    if (!Ranked || p.few_rank[k] < seen)
      for (int r = 0; r < N; ++r) sums[r] += w[k] * p.few_in[r * p.few_stride + k];
}

// A unit of a call of a few rows: the first kFewLanes of a row block.
template <class S>
struct FewUnit {
  typename Simd<S>::V lanes[kFewLanes<S> / kLanes<S>];
};

// Unit j of a call of `rows` rows, bias included. Inputs from `mirrored` on come
// last and from the row block `in`: the processor need not wait for what was computed just now.
template <class S>
__attribute__((noinline)) FewUnit<S> few_unit(const Packed<S>& p, int64_t j, int64_t rows, int64_t mirrored,
                                              const S* in) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  S sums[kFewRows] = {};
  const int64_t limit = p.limit(j), seen = limit < mirrored ? limit : mirrored;
  if (rows == 1)
    p.few_rank ? few_products<1, true>(p, j, seen, sums) : few_products<1, false>(p, j, seen, sums);
  else
    p.few_rank ? few_products<kFewRows, true>(p, j, seen, sums) : few_products<kFewRows, false>(p, j, seen, sums);
  const S* const w = p.row(j);
  const S bias = p.layer->bias ? static_cast<const S*>(p.layer->bias)[p.out_at(j)] : S(0);
  for (int64_t r = 0; r < rows; ++r) {
    sums[r] += bias;
    for (int64_t k = seen; k < limit; ++k) sums[r] += w[p.in_at(k)] * in[k * kRowBlock<S> + r];
  }
  FewUnit<S> unit;
  for (int h = 0; h < kFewLanes<S> / L; ++h) {
    V& v = unit.lanes[h] = splat<V>(sums[0]);
    if (rows > 1)
      for (int l = 0; l < L; ++l) v[l] = sums[(h * L + l) % kFewRows];
  }
  return unit;
}

}  // namespace fk::FK_ISA
