// What the steps of a flow have in common, on tiles of rows. A step is a value that a call lays out once, with
//   fwd(room, rows, x, ladj)                   maps a tile in place, and writes its ladj
//   clear(part, is_empty)                      before a part's first tile, or where it has none
//   bwd(room, rows, part, first, x, after, ladj, g)
//                                              x: what entered; after: what left, of a sweep; ladj: its gradient;
//                                              g: of y before, of x after
//   finish(parts, threads)                     what all parts have summed
// and a room, what a thread needs for a tile of so many row blocks.
#pragma once
#include "../common/arena.h"
#include "../common/pair.h"
#include "../net/net_tile.h"
#include "flow.h"

namespace fk::FK_ISA {

// How a call runs.
struct Pass {
  bool forward, backward;  // a backward pass may go forward first
  bool wants_x;            // the gradient of what enters the step
  int parts, threads;
};

// Rows of a row block <- rows of x that stand at `slots`, row k in place rank[k] (k where rank is null).
template <class S>
void gather_rows(const int32_t* slots, const int32_t* rank, int64_t n, const S* x, S* to) {
  for (int64_t k = 0; k < n; ++k)
    memcpy(to + (rank ? rank[k] : k) * kRowBlock<S>, x + slots[k] * kRowBlock<S>, kRowBlock<S> * sizeof(S));
}
// The way back.
template <class S>
void scatter_rows(const int32_t* slots, const int32_t* rank, int64_t n, const S* from, S* x) {
  for (int64_t k = 0; k < n; ++k)
    memcpy(x + slots[k] * kRowBlock<S>, from + (rank ? rank[k] : k) * kRowBlock<S>, kRowBlock<S> * sizeof(S));
}

// The same number in every lane.
template <class S>
void fill_lanes(S value, int64_t blocks, S* to) {
  for (int64_t l = 0; l < blocks * kRowBlock<S>; ++l) to[l] = value;
}

// Compensated sums over rows, lane by lane: of row i of a block at [i], what their rounding lost at [n + i].
template <class S>
struct LaneSums {
  using V = typename Simd<S>::V;
  S* at;
  int64_t n;

  static size_t size(int64_t n) { return size_t(2 * n * kRowBlock<S>); }
  void clear() const { memset(at, 0, size(n) * sizeof(S)); }
  FK_INLINE void add(int64_t i, Pair<V> term) const {
    S *const to = at + i * kRowBlock<S>, *const more = to + n * kRowBlock<S>;
    const auto sum = load_pair(to), next = sum + term, part = next - sum;
    store_pair(more, load_pair(more) + ((sum - (next - part)) + (term - part)));
    store_pair(to, next);
  }
  double total(int64_t i) const {
    double sum = 0;
    for (int64_t l = i * kRowBlock<S>; l < (i + 1) * kRowBlock<S>; ++l)
      sum += double(at[l]) + double(at[n * kRowBlock<S> + l]);
    return sum;
  }
};

}  // namespace fk::FK_ISA
