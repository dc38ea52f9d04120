// A monotone network on a row block: the elements of one feature, one a lane. Its first layer sees the number and the
// signal, whose half is computed once; the last is one unit; the layers between are those of csrc/net.
#pragma once
#include "../net/net_tile.h"
#include "../univariate/map_cpu.h"
#include "monotone_math.h"
#include "monotone_net.h"

namespace fk::FK_ISA {

// Points of an element that go through the layers together: more would leave the first-level cache.
constexpr int kPoints = 2;

// The weights of a feature's network, ready for a call.
template <class S>
struct MonotoneSet {
  MaskedLayer layer[kMaxMonotoneLayers];
  Packed<S> packed[kMaxMonotoneLayers];  // of the signal's half of the first layer, and of those between
  S* column;                             // [units] weights of the number
  S* zeros;                              // in place of biases
  const S *last, *last_bias;
  int n;
  int64_t units, last_in;

  // What enters layer k > 0, padded to whole panels.
  int64_t width(int k) const { return k == 1 ? packed[0].out_width : packed[k - 1].out_width; }
};

// Sizes and addresses; without `fill` only counted.
template <class S>
void lay_out_set(const MonotoneArgs& a, int64_t set, bool backward, bool fill, Arena& arena, MonotoneSet<S>& m) {
  m.n = a.n;
  int64_t widest = 0;
  for (int k = 0; k + 1 < a.n; ++k) {
    const MonotoneLayer& from = a.layers[k];
    MaskedLayer& l = m.layer[k] = {};
    l.weight = static_cast<const S*>(from.weight) + set * from.n_out * from.n_in + (k == 0);
    l.weight_stride = from.n_in;
    l.bias = static_cast<const S*>(from.bias) + set * from.n_out;
    l.n_in = from.n_in - (k == 0), l.n_out = from.n_out;
    m.packed[k] = lay_out<S>(l, arena, backward, false, fill);
    widest = m.packed[k].out_width > widest ? m.packed[k].out_width : widest;
  }
  m.units = a.layers[0].n_out, m.last_in = a.layers[a.n - 1].n_in;
  m.last = static_cast<const S*>(a.layers[a.n - 1].weight) + set * m.last_in;
  m.last_bias = static_cast<const S*>(a.layers[a.n - 1].bias) + set;
  m.column = arena.take<S>(size_t(m.units));
  m.zeros = arena.take<S>(size_t(widest));
  if (!fill) return;
  memset(m.zeros, 0, size_t(widest) * sizeof(S));
  const int64_t stride = a.layers[0].n_in;
  const S* first = static_cast<const S*>(a.layers[0].weight) + set * m.units * stride;
  for (int64_t j = 0; j < m.units; ++j) m.column[j] = first[j * stride];
  for (int k = 0; k + 1 < a.n; ++k) {
    for (int64_t i = 0; i < m.packed[k].panels(); ++i) pack_panel(m.packed[k], i);
    for (int64_t i = 0; backward && i < m.packed[k].panels_t(); ++i) pack_panel_t(m.packed[k], i);
  }
}

// Room of a thread, all [block][unit][kRowBlock]. Blocks are points, or the value and its slope.
template <class S>
struct MonotoneRoom {
  S *signal, *seen;
  S* a[kMaxMonotoneLayers];  // what enters layer k > 0
  S* z[kMaxMonotoneLayers];  // the same before its activation, where its slope needs it
  S* g[2];                   // gradients in turn, and what is on its way
  S *transposed, *spare;
  S *g_seen, *g_column, *g_last;  // of a row block; [unit][kRowBlock]

  MonotoneRoom(const MonotoneArgs& args, bool backward, Arena& arena) {
    constexpr int64_t R = kRowBlock<S>;
    const int64_t numbers = round_up(args.seen(), kPanel);
    int64_t widest = numbers;
    for (int k = 1; k < args.n; ++k) {
      const int64_t width = round_up(args.layers[k].n_in, kPanel);
      widest = width > widest ? width : widest;
      a[k] = arena.take<S>(size_t(kPoints * width * R));
      const bool needed = args.spec.positive || (backward && !from_output(args.spec.activation));
      z[k] = needed ? arena.take<S>(size_t(kPoints * width * R)) : nullptr;
    }
    const int64_t units = round_up(args.layers[0].n_out, kPanel);
    signal = arena.take<S>(size_t(numbers * R));
    seen = arena.take<S>(size_t(units * R));
    for (S*& buffer : g) buffer = arena.take<S>(size_t(kPoints * widest * R));
    spare = arena.take<S>(size_t(args.numbers));
    transposed = backward ? arena.take<S>(size_t(kPoints * R * round_up(widest, R))) : nullptr;
    g_seen = backward ? arena.take<S>(size_t(units * R)) : nullptr;
    g_column = backward ? arena.take<S>(size_t(units * R)) : nullptr;
    g_last = backward ? arena.take<S>(size_t((args.layers[args.n - 1].n_in + 1) * R)) : nullptr;
  }
};

// e^x - 1 for x <= 0, 2 ulp: 2^n (e^r - 1) + (2^n - 1) by the polynomials of exp_, which keeps the digits near 0. An
// activation is most of what such a network costs, and activation.h's, by tanh, divides three times.
FK_INLINE f32 expm1_lanes(f32 x) {
  x = max_(x, splat<f32>(-110.f));
  const f32 n = (x * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
  f32 r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  const f32 q =
      (((0.0013814465722f * r + 0.008368780446f) * r + 0.041668394243f) * r + 0.16666520107f) * r + 0.49999993412f;
  const f32 power = scale2(splat<f32>(1.f), n);
  return power * (r * r * q + r) + (power - 1.f);
}
FK_INLINE f64 expm1_lanes(f64 x) {
  x = max_(x, splat<f64>(-750.));
  const f64 n = (x * 1.4426950408889634 + 0x1.8p52) - 0x1.8p52;
  f64 r = x - n * 0.693147180369123816490;
  r = r - n * 1.90821492927058770002e-10;
  f64 q = 2.499996535964057447e-8 * r + 2.763037862521098725e-7;
  q = q * r + 2.75575873421640255e-6;
  q = q * r + 0.00002480149276278181092;
  q = q * r + 0.0001984126950476538279;
  q = q * r + 0.001388888894392265497;
  q = q * r + 0.008333333333495623791;
  q = q * r + 0.04166666666652918852;
  q = q * r + 0.1666666666666641023;
  q = q * r + 0.5000000000000010721;
  const f64 power = scale2(splat<f64>(1.), n);
  return power * (r * r * q + r) + (power - 1.);
}

template <class V>
FK_INLINE V activated_lanes(Activation act, V v) {
  if (act == Activation::elu) return select(v > 0, v, expm1_lanes(min_(v, V{})));
  return activate(act, v);
}
template <class T>
FK_INLINE T activated(Activation act, T v) {
  return {activated_lanes(act, v.a), activated_lanes(act, v.b)};
}
template <class T>
FK_INLINE T slope_of(Activation act, T out, T in) {
  return {activation_slope(act, out.a, in.a), activation_slope(act, out.b, in.b)};
}
template <class V>
FK_INLINE Pair<V> tail_slope_of(Activation act, Pair<V> out, Pair<V> in) {
  return {tail_slope(act, out.a, in.a), tail_slope(act, out.b, in.b)};
}

template <class S>
FK_INLINE void add_to(S* at, Pair<typename Simd<S>::V> v) {
  store_pair(at, load_pair(at) + v);
}

// The network of a row block, whose signal's half lies in room.seen.
template <class S>
struct MonotoneTile {
  using T = Pair<typename Simd<S>::V>;
  static constexpr int64_t R = kRowBlock<S>;
  const MonotoneSet<S>& set;
  const MonotoneRoom<S>& room;
  Activation act;

  static FK_INLINE T all(S s) { return T{splat<decltype(T::a)>(s), splat<decltype(T::a)>(s)}; }

  // The net's output at `count` <= kPoints points of every lane.
  void values(const T* v, int count, T* u) const {
    const int n = set.n;
    const int64_t width = set.width(1);
    for (int64_t j = 0; j < set.units; ++j) {
      const T seen = load_pair(room.seen + j * R), weight = all(set.column[j]);
      for (int b = 0; b < count; ++b) {
        const T z = seen + v[b] * weight;
        const int64_t at = (b * width + j) * R;
        if (room.z[1]) store_pair(room.z[1] + at, z);
        store_pair(room.a[1] + at, activated(act, z));
      }
    }
    const RowTile rows = {0, count * R};
    for (int k = 1; k + 1 < n; ++k) {
      const Packed<S>& p = set.packed[k];
      S *const a = room.a[k + 1], *const z = room.z[k + 1] ? room.z[k + 1] : a;
      Outlet<S> o = {};
      o.z = z;
      forward_layer(p, room.a[k], rows, o);
      for (int64_t i = 0; i < count * p.out_width * R; i += R) store_pair(a + i, activated(act, load_pair(z + i)));
    }
    T sum[kPoints];
    for (int b = 0; b < count; ++b) sum[b] = all(*set.last_bias);
    const S* const a = room.a[n - 1];
    for (int64_t j = 0; j < set.last_in; ++j)
      for (int b = 0; b < count; ++b) sum[b] = sum[b] + load_pair(a + (b * set.width(n - 1) + j) * R) * set.last[j];
    for (int b = 0; b < count; ++b) u[b] = sum[b];
  }

  // Behind values() at one point: its slope there.
  T slope() const {
    const int n = set.n;
    for (int64_t j = 0; j < set.units; ++j) {
      const T a = load_pair(room.a[1] + j * R), z = load_pair(room.z[1] + j * R), weight = all(set.column[j]);
      store_pair(room.a[1] + (set.width(1) + j) * R, tail_slope_of(act, a, z) * weight);
    }
    for (int k = 1; k + 1 < n; ++k) {
      Packed<S> p = set.packed[k];
      p.bias = set.zeros;
      const int64_t width = p.out_width;
      Outlet<S> o = {};
      o.z = room.z[k + 1] + width * R;
      forward_layer(p, room.a[k] + set.width(k) * R, RowTile{0, R}, o);
      for (int64_t j = 0; j < p.n_out; ++j) {
        const T a = load_pair(room.a[k + 1] + j * R), z = load_pair(room.z[k + 1] + j * R);
        store_pair(room.a[k + 1] + (width + j) * R, tail_slope_of(act, a, z) * load_pair(o.z + j * R));
      }
    }
    T sum = {};
    const S* const a = room.a[n - 1] + set.width(n - 1) * R;
    for (int64_t j = 0; j < set.last_in; ++j) sum = sum + load_pair(a + j * R) * set.last[j];
    return sum;
  }

  // ---- the way back ----

  void clear(bool weights) const {
    memset(room.g_seen, 0, size_t(set.units * R) * sizeof(S));
    if (!weights) return;
    memset(room.g_column, 0, size_t(set.units * R) * sizeof(S));
    memset(room.g_last, 0, size_t((set.last_in + 1) * R) * sizeof(S));
  }

  // Behind values(): from the gradient of u to those of the points, which add to g_v where that is wanted; those of
  // weights add to `sums`, null: not wanted, those of single columns and rows to the room.
  void values_back(const T* v, int count, const T* g_u, T* g_v, const Sums<S>* sums) const {
    const int n = set.n;
    S *g = room.g[0], *other = room.g[1];
    const S *a = room.a[n - 1], *z = room.z[n - 1];
    const int64_t width = set.width(n - 1);
    for (int64_t j = 0; j < set.last_in; ++j) {
      T of_weight = {};
      for (int b = 0; b < count; ++b) {
        const int64_t at = (b * width + j) * R;
        const T out = load_pair(a + at);
        of_weight = of_weight + g_u[b] * out;
        store_pair(g + at, g_u[b] * set.last[j] * slope_of(act, out, z ? load_pair(z + at) : out));
      }
      if (sums) add_to(room.g_last + j * R, of_weight);
    }
    if (sums)
      for (int b = 0; b < count; ++b) add_to(room.g_last + set.last_in * R, g_u[b]);
    for (int k = n - 2; k > 0; --k) {
      const Packed<S>& p = set.packed[k];
      if (sums) {
        transpose_row_blocks(RowTile{0, count * R}, room.a[k], p.in_width, p.n_in, room.transposed);
        weight_gradients(p, g, room.transposed, count, sums[k]);
      }
      backward_layer(p, g, count, act, room.a[k], room.z[k], static_cast<const S*>(nullptr), other);
      S* const made = other;
      other = g, g = made;
    }
    first_back(v, count, count, g, g_v, sums);
  }

  // Behind slope(): the same from the gradients of the value and of its slope.
  void slope_back(T v, T g_u, T g_slope, T* g_v, const Sums<S>* sums) const {
    const int n = set.n;
    S *g = room.g[0], *other = room.g[1];
    for (int64_t j = 0; j < set.last_in; ++j) {
      const S weight = set.last[j];
      if (sums)
        add_to(room.g_last + j * R, load_pair(room.a[n - 1] + j * R) * g_u +
                                        load_pair(room.a[n - 1] + (set.width(n - 1) + j) * R) * g_slope);
      store_pair(g + j * R, g_u * weight);
      store_pair(g + (set.width(n - 1) + j) * R, g_slope * weight);
    }
    if (sums) add_to(room.g_last + set.last_in * R, g_u);
    activation_back(n - 1, g);
    for (int k = n - 2; k > 0; --k) {
      const Packed<S>& p = set.packed[k];
      if (sums) {
        transpose_row_blocks(RowTile{0, 2 * R}, room.a[k], p.in_width, p.n_in, room.transposed);
        weight_gradients(p, g, room.transposed, 2, Sums<S>{sums[k].weight, nullptr, sums[k].columns, nullptr});
        weight_gradients(p, g, room.transposed, 1, Sums<S>{nullptr, sums[k].bias, sums[k].columns, nullptr});
      }
      const S* const none = nullptr;
      backward_layer(p, g, 2, Activation::identity, none, none, none, other);
      S* const made = other;
      other = g, g = made;
      activation_back(k, g);
    }
    first_back(&v, 1, 2, g, g_v, sums);
  }

 private:
  // From gradients of what enters layer k, and of its slope, to those before the activation.
  void activation_back(int k, S* g) const {
    const int64_t width = set.width(k), units = k == 1 ? set.units : set.packed[k - 1].n_out;
    for (int64_t j = 0; j < units; ++j) {
      const T out = load_pair(room.a[k] + j * R), slope = tail_slope_of(act, out, load_pair(room.z[k] + j * R));
      const T bend = {curvature(act, out.a, slope.a), curvature(act, out.b, slope.b)};
      const T dz = k == 1 ? all(set.column[j]) : load_pair(room.z[k] + (width + j) * R);
      const T g_a = load_pair(g + j * R), g_da = load_pair(g + (width + j) * R);
      store_pair(g + j * R, slope * g_a + bend * dz * g_da);
      store_pair(g + (width + j) * R, slope * g_da);
    }
  }

  // The first layer's: `blocks` more than `count`: the last is the gradient of the slope.
  void first_back(const T* v, int count, int blocks, const S* g, T* g_v, const Sums<S>* sums) const {
    const int64_t width = set.width(1);
    for (int64_t j = 0; j < set.units; ++j) {
      T of_seen = {}, of_column = {};
      for (int b = 0; b < count; ++b) {
        const T at = load_pair(g + (b * width + j) * R);
        of_seen = of_seen + at;
        of_column = of_column + at * v[b];
        if (g_v) g_v[b] = g_v[b] + at * set.column[j];
      }
      for (int b = count; b < blocks; ++b) of_column = of_column + load_pair(g + (b * width + j) * R);
      add_to(room.g_seen + j * R, of_seen);
      if (sums) add_to(room.g_column + j * R, of_column);
    }
  }
};

}  // namespace fk::FK_ISA
