// A polynomial of one feature on a row block, as fused layers call it, and as a call by itself does.
#pragma once
#include "../univariate/map_cpu.h"
#include "bernstein_lanes.h"
#include "squares_lanes.h"

namespace fk::FK_ISA {

// The parameters of a feature one after another, [param][kRowBlock]: where they lie, or copied to `room`.
template <class S>
FK_INLINE const S* in_order(const ParamRows<S>& p, int n, S* room) {
  if (!p.rank) return p.block + p.first * kRowBlock<S>;
  for (int i = 0; i < n; ++i) memcpy(room + i * kRowBlock<S>, p.row(i), kRowBlock<S> * sizeof(S));
  return room;
}
// Where their gradients are put, and then brought from.
template <class S>
FK_INLINE S* place_of(const ParamRows<S>& p, S* room) {
  return p.rank ? room : p.block + p.first * kRowBlock<S>;
}
template <class S>
FK_INLINE void bring(const ParamRows<S>& p, int n, const S* from) {
  if (!p.rank) return;
  for (int i = 0; i < n; ++i) memcpy(p.row(i), from + i * kRowBlock<S>, kRowBlock<S> * sizeof(S));
}

template <class S>
struct SquaresMap {
  using T = Pair<typename Simd<S>::V>;
  Squares<S> f;
  int params;
  bool inverse;
  S *room, *grads_room;

  SquaresMap(const PolynomialSpec& s, Arena& arena)
      : f(s),
        params(s.params()),
        inverse(s.inverse),
        room(arena.take<S>(size_t(params) * kRowBlock<S>)),
        grads_room(arena.take<S>(size_t(params) * kRowBlock<S>)) {}

  FK_INLINE void eval(const ParamRows<S>& p, T v, T* out, T* ladj) const {
    const S* c = in_order(p, params, room);
    if (!inverse) return f.eval(c, v, out, ladj);
    const T x = f.solve(c, v);
    *ladj = -log_(f.density(c, x / f.bound));
    *out = select(*ladj == *ladj, x, *ladj);  // a search leaves out what is no number
  }

  // Of an inverse by the implicit function theorem: see README.md.
  FK_INLINE T grad(const ParamRows<S>& p, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    const S* c = in_order(p, params, room);
    S* const to = place_of(grads, grads_room);
    const T x = inverse ? f.solve(c, v) : v;
    T g, g_x, g_v;
    f.slopes(c, x / f.bound, &g, &g_x);
    if (inverse) {
      g_v = (g_out - g_ladj * (g_x / g)) / g;
      f.put_grads(c, to, x, g, -g_v, -g_ladj);
    } else {
      g_v = g_out * g + g_ladj * (g_x / g);
      f.put_grads(c, to, x, g, g_out, g_ladj);
    }
    bring(grads, params, to);
    return g_v;
  }
};

template <class S>
struct BernsteinMap {
  using T = Pair<typename Simd<S>::V>;
  Bernstein<S> f;
  int params;
  bool inverse;
  S *room, *grads_room;

  BernsteinMap(const PolynomialSpec& s, Arena& arena)
      : f(s, arena),
        params(s.params()),
        inverse(s.inverse),
        room(arena.take<S>(size_t(params) * kRowBlock<S>)),
        grads_room(arena.take<S>(size_t(params) * kRowBlock<S>)) {}

  FK_INLINE void eval(const ParamRows<S>& p, T v, T* out, T* ladj) const {
    const S* c = in_order(p, params, room);
    if (!inverse) return f.eval(c, v, out, ladj);
    const T x = f.solve(c, v);
    T y;
    f.eval(c, x, &y, ladj);
    *out = x, *ladj = -*ladj;
  }

  FK_INLINE T grad(const ParamRows<S>& p, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    const S* c = in_order(p, params, room);
    S* const to = place_of(grads, grads_room);
    const T x = inverse ? f.solve(c, v) : v;
    const auto at = f.place(x);
    T first, last, g, log_g_x, g_v;
    f.read(c, &first, &last);
    f.order(at.mirrored);
    f.slopes(at, &g, &log_g_x);
    if (inverse) {
      g_v = (g_out - g_ladj * log_g_x) / g;
      f.put_grads(c, to, at, -g_v, -g_ladj);
    } else {
      g_v = g_out * g + g_ladj * log_g_x;
      f.put_grads(c, to, at, g_out, g_ladj);
    }
    bring(grads, params, to);
    return g_v;
  }
};

}  // namespace fk::FK_ISA
