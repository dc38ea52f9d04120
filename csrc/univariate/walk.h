// Walks over the tensors of a call of a map's op in SIMD lanes: one lane per element (row, feature), two blocks of
// lanes at a time. Included by <map>_cpu.cpp, once per instruction set.
#pragma once
#include <type_traits>

#include "../common/by_type.h"
#include "../common/pair.h"
#include "../common/parallel.h"
#include "map_args.h"
#include "param_lanes.h"

namespace fk::FK_ISA {
namespace {

constexpr int kMostParams = 513;  // of an element
// Elements per group of rows whose ladj is reduced together; small enough for L1.
constexpr int kGroup = 512;
// Elements worth a thread of their own (about 10 us of work at K = 8).
constexpr int kGrain = 1024;

// ---- params ----

// A row of params for each lane of two blocks: where `rows` says or, if it is null, `stride` apart from `base` on.
template <class TP>
struct LaneRows {
  TP* const* rows;
  TP* base;
  int64_t stride;

  FK_INLINE TP* row(int l) const { return rows ? rows[l] : base + l * stride; }
};

// Such rows as the kernels want them: where they lie, or copies of what is of 16 bits, unevenly spaced or the same row.
template <class S, class TP>
struct RowsInPlace {
  S copies[2 * kLanes<S> * kMostParams];

  static FK_INLINE bool copied(const LaneRows<TP>& r) { return sizeof(TP) != sizeof(S) || r.rows || r.stride == 0; }

  FK_INLINE ParamLanes<S> at(int params, const LaneRows<TP>& r) {
    if (copied(r)) return {copies, params};
    return {reinterpret_cast<S*>(r.base), r.stride};
  }
  FK_INLINE ParamLanes<S> load(int params, const LaneRows<TP>& from) {
    if (copied(from))
      for (int l = 0; l < 2 * kLanes<S>; ++l)
        for (int p = 0; p < params; ++p) copies[l * params + p] = to_float(from.row(l)[p]);
    return at(params, from);
  }
  // Of the first n lanes, what was put into `at`.
  FK_INLINE void store(int params, const LaneRows<TP>& to, int n) const {
    if (copied(to))
      for (int l = 0; l < n; ++l)
        for (int p = 0; p < params; ++p) from_float(copies[l * params + p], to.row(l)[p]);
  }
};

// ---- walking the tensors ----

template <class S, class T>
FK_INLINE Pair<typename Simd<S>::V> load_elements(const T* p) {
  return {load_lanes<S>(p), load_lanes<S>(p + kLanes<S>)};
}

template <class S, class T>
FK_INLINE void store_elements(T* p, Pair<typename Simd<S>::V> v, int n) {
  constexpr int L = kLanes<S>;
  if (sizeof(T) == sizeof(S) && n == 2 * L) {
    store(reinterpret_cast<S*>(p), v.a);
    store(reinterpret_cast<S*>(p) + L, v.b);
  } else {
    alignas(64) S wide[2 * L];
    store(wide, v.a);
    store(wide + L, v.b);
    for (int l = 0; l < n; ++l) from_float(wide[l], p[l]);
  }
}

// Calls body(first element, lanes in use, values of x, rows of params) over the rows [r0, r1), for 2L elements at a
// time; lanes past the end repeat the first.
template <class S, class TX, class TP, class F>
FK_INLINE void for_blocks(const MapArgs& a, int64_t r0, int64_t r1, RowCursor& cur, const F& body) {
  constexpr int N = 2 * kLanes<S>;
  const TX* x = static_cast<const TX*>(a.x);
  TP* params = static_cast<TP*>(const_cast<void*>(a.params));
  const int64_t D = a.features, end = r1 * D;
  const bool even = a.evenly_spaced();
  int64_t d = 0;
  for (int64_t e = r0 * D; e < end; e += N) {
    const int n = end - e < N ? int(end - e) : N;
    if (even && n == N) {
      body(e, n, load_elements<S>(x + e), LaneRows<TP>{nullptr, params + e * a.params_stride, a.params_stride});
      continue;
    }
    TP* in[N];
    alignas(64) TX xs[N];
    if (even) {
      for (int l = 0; l < N; ++l) {
        const int64_t at = e + (l < n ? l : 0);
        xs[l] = x[at];
        in[l] = params + at * a.params_stride;
      }
    } else {
      for (int l = 0; l < n; ++l) {
        xs[l] = x[cur.a + d * a.x_stride];
        in[l] = params + (cur.b + d * a.params_stride);
        if (++d == D) {
          d = 0;
          cur.next();
        }
      }
      for (int l = n; l < N; ++l) {
        xs[l] = xs[0];
        in[l] = in[0];
      }
    }
    body(e, n, load_elements<S>(xs), LaneRows<TP>{in, nullptr, 0});
  }
}

// Rows are dealt out in groups of about kGroup elements, so that lanes stay full for any D.
struct Groups {
  int64_t rows, per_group, count, grain;
  Groups(const MapArgs& a, int64_t grain_elements) {
    rows = a.rows.count();
    per_group = a.features < kGroup ? kGroup / a.features : 1;
    count = (rows + per_group - 1) / per_group;
    const int64_t elements = per_group * a.features;
    grain = (grain_elements + elements - 1) / elements;
  }
  int64_t first_row(int64_t group) const { return group * per_group < rows ? group * per_group : rows; }
};

// A map without its type, which is the same to all that walk over tensors. Room: what a thread needs to evaluate it.
template <class Scalar, class Workroom>
struct RowMap {
  using S = Scalar;
  using Room = Workroom;
  using T = Pair<typename Simd<S>::V>;
  using Params = const ParamLanes<S>&;
  const void* map;
  int params;
  void (*eval)(const void* map, Params params, Room&, T v, T* out, T* ladj);
  T (*grad)(const void* map, Params params, Params grads, Room&, T v, T g_out, T g_ladj);
};

// In double, in an order that depends on n alone: eight sums side by side, since one waits for each addition.
template <class S>
FK_INLINE double sum_of(const S* terms, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += terms[i + j];
  for (int j = 0; i + j < n; ++j) sums[j] += terms[i + j];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <class TX, class TP, class Map>
void fwd_groups(const Map& map, const MapArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  using S = typename Map::S;
  using T = typename Map::T;
  constexpr int L = kLanes<S>;
  const int64_t D = a.features;
  const int P = map.params;
  alignas(64) typename Map::Room room;
  RowsInPlace<S, TP> in_place;
  alignas(64) S buffer[kGroup + 2 * kLanes<S>];  // ladj of the elements of a group
  RowCursor cursor(a.rows, groups.first_row(g0));
  for (int64_t g = g0; g < g1; ++g) {
    const int64_t r0 = groups.first_row(g), r1 = groups.first_row(g + 1);
    double long_row = 0;  // the sum of a row that does not fit the buffer
    int64_t filled = 0;
    for_blocks<S, TX, TP>(a, r0, r1, cursor, [&](int64_t e, int n, T v, const LaneRows<TP>& params) {
      T out, ladj;
      map.eval(map.map, in_place.load(P, params), room, v, &out, &ladj);
      store_elements<S>(static_cast<TX*>(a.y) + e, out, n);
      store_elements<S>(buffer + filled, ladj, 2 * L);
      filled += n;
      if (D > kGroup) {
        long_row += sum_of(buffer, n);
        filled = 0;
      }
    });
    S* ladj = static_cast<S*>(a.ladj);
    if (D > kGroup) {
      ladj[r0] = S(long_row);
      continue;
    }
    for (int64_t r = r0; r < r1; ++r) ladj[r] = S(sum_of(buffer + (r - r0) * D, D));
  }
}

template <class TX, class TP, class Map>
void bwd_groups(const Map& map, const MapArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  using S = typename Map::S;
  using T = typename Map::T;
  constexpr int N = 2 * kLanes<S>;
  const int64_t D = a.features;
  const int P = map.params;
  const TX* grad_y = static_cast<const TX*>(a.grad_y);
  const S* grad_ladj = static_cast<const S*>(a.grad_ladj);
  TP* grad_params = static_cast<TP*>(a.grad_params);
  alignas(64) typename Map::Room room;
  RowsInPlace<S, TP> in_place, grads_in_place;
  int64_t row = groups.first_row(g0), d = 0;
  RowCursor cursor(a.rows, row);
  for_blocks<S, TX, TP>(a, row, groups.first_row(g1), cursor, [&](int64_t e, int n, T v, const LaneRows<TP>& params) {
    alignas(64) TX gys[N] = {};
    alignas(64) S gls[N] = {};
    TP* rows[N];
    LaneRows<TP> out = {nullptr, grad_params + e * P, P};
    if (grad_y) memcpy(gys, grad_y + e, size_t(n) * sizeof(TX));
    if (D - d > N) {  // one row
      for (int l = 0; l < N; ++l) gls[l] = grad_ladj ? grad_ladj[row] : S(0);
      d += n;
    } else {
      for (int l = 0; l < n; ++l) {
        if (grad_ladj) gls[l] = grad_ladj[row];
        if (++d == D) {
          d = 0;
          ++row;
        }
      }
    }
    if (n < N) {  // lanes past the end have no place of their own
      for (int l = 0; l < n; ++l) rows[l] = out.row(l);
      out.rows = rows;
    }
    const T g_x = map.grad(map.map, in_place.load(P, params), grads_in_place.at(P, out), room, v, load_elements<S>(gys),
                           load_elements<S>(gls));
    grads_in_place.store(P, out, n);
    store_elements<S>(static_cast<TX*>(a.grad_x) + e, g_x, n);
  });
}

template <class TX, class TP>
struct Run {
  template <class Map>
  static void fwd(const Map& map, const MapArgs& a, int threads) {
    const Groups groups(a, kGrain);
    parallel_for(groups.count, groups.grain, threads,
                 [&](int64_t g0, int64_t g1) { fwd_groups<TX, TP>(map, a, groups, g0, g1); });
  }
  template <class Map>
  static void bwd(const Map& map, const MapArgs& a, int threads) {
    const Groups groups(a, kGrain / 2);
    parallel_for(groups.count, groups.grain, threads,
                 [&](int64_t g0, int64_t g1) { bwd_groups<TX, TP>(map, a, groups, g0, g1); });
  }
};

// f(S(), Run<..>()) with the types of a call. Params are of x's type, or of any beside a float32 x.
template <class F>
void by_types(const MapArgs& a, const F& f) {
  by_scalar(a.x_type, [&](auto s) {
    using S = decltype(s);
    by_storage<S>(a.x_type, [&](auto x) {
      using TX = std::decay_t<decltype(x)>;
      by_storage<S>(a.params_type, [&](auto p) {
        using TP = std::decay_t<decltype(p)>;
        if constexpr (std::is_same_v<TX, S> || std::is_same_v<TX, TP>) f(S(), Run<TX, TP>());
      });
    });
  });
}

}  // namespace
}  // namespace fk::FK_ISA
