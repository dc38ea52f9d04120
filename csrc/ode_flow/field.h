// The vector field on a tile of rows: one evaluation, with the trace, and the way back through it.
//
// Lanes are rows. What belongs to a row block is [number][kRowBlock rows]; widths of layers are padded to whole panels.
#pragma once
#include "../net/net_tile.h"
#include "smooth.h"
#include "tableau.h"

namespace fk::FK_ISA {

// What the tiles of a call share: its weights, packed once, and the sums of its threads.
template <class S>
struct OdeNet {
  const OdeArgs& args;
  MaskedLayer layers[kMostOdeLayers + 1];
  Call<S> call;

  OdeNet(const OdeArgs& a, bool backward, int parts, int threads)
      : args(a), call(spec(a), backward, kFewRows + 1, parts, threads) {}  // packed always: they are used many times
  OdeNet(const OdeNet&) = delete;

  bool has_matrix() const { return args.trace == OdeTrace::product && args.hidden() > 0; }
  const Packed<S>& layer(int k) const { return call.net.layer[k]; }
  const Packed<S>& matrix() const { return call.net.layer[args.n]; }

 private:
  NetSpec spec(const OdeArgs& a) {
    for (int k = 0; k <= a.n; ++k) {
      const OdeLayer& from = k < a.n ? a.layers[k] : a.matrix;
      MaskedLayer& to = layers[k] = {};
      to.weight = from.weight, to.weight_stride = from.weight_stride, to.bias = from.bias;
      to.n_in = from.n_in, to.n_out = from.n_out;
      to.grad_weight = from.grad_weight, to.grad_bias = from.grad_bias;
    }
    return {layers, a.n + has_matrix(), false, Activation::identity, Activation::identity};
  }
};

// What an evaluation leaves.
template <class S>
struct Stage {
  S* in;                                                         // x and time, as the first layer sees them
  S *h[kMostOdeLayers], *d[kMostOdeLayers], *z[kMostOdeLayers];  // of hidden layers; z null: not kept
  S *f, *trace;                                                  // [last width], [1]
};

// The buffers of a field on a tile.
template <class S>
struct FieldTile {
  static constexpr int R = kRowBlock<S>;
  const OdeNet<S>& net;
  int64_t blocks;                            // of the rows that are loaded
  S *base, *right, *left;                    // of the rows; null: none
  S *v[kMostOdeLayers], *w[kMostOdeLayers];  // of noise: what enters and leaves the products; v[0] behind d[0]
  S* passed;                                 // of a product: C d
  // Backward.
  S *g[2], *gd[kMostOdeLayers], *transposed;
  S *grad_base, *grad_right, *grad_left;
  S* grad_constant;  // [1] per block
  S *spare, *zeros;  // [widest]

  int64_t width(int k) const { return net.layer(k).out_width; }
  int64_t in_width() const { return net.layer(0).in_width; }

  FieldTile(const OdeNet<S>& of, int64_t n_blocks, bool backward, Arena& arena) : net(of), blocks(n_blocks) {
    const OdeArgs& a = net.args;
    const bool noise = a.trace == OdeTrace::noise;
    int64_t widest = in_width(), deepest = net.layer(0).n_in;
    for (int k = 0; k < a.n; ++k) {
      widest = width(k) > widest ? width(k) : widest;
      deepest = net.layer(k).n_out > deepest ? net.layer(k).n_out : deepest;
    }
    const auto take = [&](bool wanted, int64_t n) { return wanted ? arena.take<S>(size_t(n * blocks * R)) : nullptr; };
    base = take(a.base.data != nullptr, width(0));
    right = take(noise, width(0)), left = take(noise, round_up(a.left_width(), kPanel));
    for (int k = 0; k < a.hidden(); ++k) {
      v[k] = take(noise, width(k)), w[k] = take(noise && k > 0, width(k));
      gd[k] = take(backward, width(k));
    }
    passed = take(net.has_matrix(), widest);
    for (S*& buffer : g) buffer = take(backward, widest);
    transposed = take(backward, round_up(deepest, R));
    grad_base = take(backward && a.base.data, width(0));
    grad_right = take(backward && noise, width(0)),
    grad_left = take(backward && noise, round_up(a.left_width(), kPanel));
    grad_constant = take(backward, 1);
    spare = arena.take<S>(size_t(widest)), zeros = arena.take<S>(size_t(widest));
    if (!arena.counts()) memset(zeros, 0, size_t(widest) * sizeof(S));
  }

  // Numbers that a row takes, without those of stages.
  static int64_t widths(const OdeArgs& a, bool backward) {
    int64_t sum = 4 * a.features;
    for (int k = 0; k < a.n; ++k) sum += (backward ? 6 : 3) * a.layers[k].n_out;
    return sum + (backward ? 3 : 1) * a.layers[0].n_in;
  }
  static int64_t stage_widths(const OdeArgs& a) {
    int64_t sum = a.layers[0].n_in;
    for (int k = 0; k < a.n; ++k) sum += (2 + needs_input(a.activation)) * a.layers[k].n_out;
    return sum;
  }

  Stage<S> stage(Arena& arena, bool keeps_input) const {
    const auto take = [&](int64_t n) { return arena.take<S>(size_t(n * blocks * R)); };
    Stage<S> s = {};
    s.in = take(in_width());
    for (int k = 0; k < net.args.hidden(); ++k) {
      s.h[k] = take(width(k)), s.d[k] = take(width(k));
      s.z[k] = keeps_input ? take(width(k)) : nullptr;
    }
    s.f = take(width(net.args.n - 1)), s.trace = take(1);
    return s;
  }

  // What is of the rows.
  void load(const RowTile& rows) {
    const OdeArgs& a = net.args;
    blocks = rows.blocks<S>();
    const auto read = [&](const OdeRows& from, int64_t n, S* to) {
      if (to) load_row_blocks(rows, static_cast<const S*>(from.data), from.stride, n, nullptr, round_up(n, kPanel), to);
    };
    read(a.base, a.layers[0].n_out, base);
    read(a.right, a.layers[0].n_out, right), read(a.left, a.left_width(), left);
  }

  // The gradients of what is of the rows start at nothing.
  void clear() const {
    const auto none = [&](S* of, int64_t n) {
      if (of) memset(of, 0, size_t(blocks * n * R) * sizeof(S));
    };
    none(grad_base, width(0)), none(grad_right, width(0));
    none(grad_left, round_up(net.args.left_width(), kPanel)), none(grad_constant, 1);
  }
  void store(const RowTile& rows) const {
    const OdeArgs& a = net.args;
    const auto write = [&](const OdeRows& to, int64_t n, const S* of) {
      if (of && to.grad) store_row_blocks(rows, of, round_up(n, kPanel), nullptr, n, static_cast<S*>(to.grad), spare);
    };
    write(a.base, a.layers[0].n_out, grad_base);
    write(a.right, a.layers[0].n_out, grad_right), write(a.left, a.left_width(), grad_left);
  }

  // f and its trace of what lies in s.in; with_trace false: f alone.
  void evaluate(const RowTile& rows, const Stage<S>& s, bool with_trace) const {
    const OdeArgs& a = net.args;
    const S* from = s.in;
    for (int k = 0; k < a.n; ++k) {
      const bool last = k == a.n - 1;
      Outlet<S> o = {};
      if (k == 0) o.add = base;
      o.z = last ? s.f : s.h[k];
      forward_layer(net.layer(k), from, rows, o);
      if (last) break;
      by_activation(a.activation, [&](auto act) { activate_all<decltype(act)::value>(k, s); });
      from = s.h[k];
    }
    if (with_trace) trace(rows, s);
  }

  // Adds to the gradients of weights, from those of f [last width] and of the trace [1]; that of x to gx [features].
  void back(const RowTile& rows, const Stage<S>& s, S* gf, const S* gt, S* gx, const Sums<S>* sums) const {
    const OdeArgs& a = net.args;
    back_trace(rows, s, gt, sums);
    S* of_z = gf;
    for (int k = a.n - 1; k >= 0; --k) {
      add_weights(rows, k, k > 0 ? s.h[k - 1] : s.in, of_z, sums, true);
      if (k == 0 && grad_base) add_rows(width(0), of_z, grad_base);
      S* const to = of_z == g[0] ? g[1] : g[0];
      backward_layer<S>(net.layer(k), of_z, blocks, Activation::identity, nullptr, nullptr, nullptr, to);
      of_z = to;
      if (k > 0) by_activation(a.activation, [&](auto act) { back_activation<decltype(act)::value>(k - 1, s, of_z); });
    }
    for (int64_t b = 0; b < blocks; ++b)
      memcpy(gx + b * a.features * R, of_z + b * in_width() * R, size_t(a.features * R) * sizeof(S));
  }

 private:
  using T = PairOf<S>;

  template <Smooth A>
  void activate_all(int k, const Stage<S>& s) const {
    for (int64_t i = 0; i < blocks * width(k) * R; i += R) {
      const T z = load_pair(s.h[k] + i);
      const Activated<T> act = activated<A>(z);
      if (s.z[k]) store_pair(s.z[k] + i, z);
      store_pair(s.h[k] + i, act.value), store_pair(s.d[k] + i, act.slope);
    }
  }

  // From the gradient of h to that of z, with what the slope's adds.
  template <Smooth A>
  void back_activation(int k, const Stage<S>& s, S* of_h) const {
    for (int64_t i = 0; i < blocks * width(k) * R; i += R) {
      const T h = load_pair(s.h[k] + i), d = load_pair(s.d[k] + i), z = s.z[k] ? load_pair(s.z[k] + i) : h;
      store_pair(of_h + i, load_pair(of_h + i) * d + load_pair(gd[k] + i) * slope_of_slope<A>(z, h, d));
    }
  }

  // to[j] = f(j, b, at): of n numbers of a block, padded to `padded`.
  template <class F>
  void each(int64_t n, int64_t padded, const F& f) const {
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t j = 0; j < n; ++j) f(b, (b * padded + j) * R);
  }
  void add_rows(int64_t padded, const S* from, S* to) const {
    for (int64_t i = 0; i < blocks * padded * R; i += R) store_pair(to + i, load_pair(to + i) + load_pair(from + i));
  }

  // sum over n numbers of each block of the products of p and q, in two chains.
  void dot(int64_t n, int64_t padded, const S* p, const S* q, S* to) const {
    for (int64_t b = 0; b < blocks; ++b) {
      const S *pb = p + b * padded * R, *qb = q + b * padded * R;
      T even = {}, odd = {};
      int64_t j = 0;
      for (; j + 1 < n; j += 2) {
        even = even + load_pair(pb + j * R) * load_pair(qb + j * R);
        odd = odd + load_pair(pb + (j + 1) * R) * load_pair(qb + (j + 1) * R);
      }
      if (j < n) even = even + load_pair(pb + j * R) * load_pair(qb + j * R);
      store_pair(to + b * R, even + odd);
    }
  }

  void multiply(int k, const S* p, const S* q, S* to) const { multiply_into(blocks * width(k) * R, p, q, to); }

  // Behind evaluate's layers; of noise also before the way back, which reads v and w.
  void trace(const RowTile& rows, const Stage<S>& s) const {
    const OdeArgs& a = net.args;
    const int hidden = a.hidden();
    if (a.trace == OdeTrace::noise) {
      through_noise(rows, s);
      const S* const out = hidden > 0 ? v[hidden - 1] : right;
      dot(a.left_width(), hidden > 0 ? width(hidden - 1) : width(0), out, left, s.trace);
      return;
    }
    if (hidden == 0) {
      for (int64_t b = 0; b < blocks; ++b)
        store_pair(s.trace + b * R, both<T>(*static_cast<const S*>(a.matrix.weight)));
      return;
    }
    through_matrix(rows, s);
    const int64_t padded = net.matrix().out_width;
    if (hidden == 2) return dot(a.matrix.n_out, padded, s.d[1], passed, s.trace);
    for (int64_t b = 0; b < blocks; ++b) store_pair(s.trace + b * R, load_pair(passed + b * padded * R));
  }
  void through_matrix(const RowTile& rows, const Stage<S>& s) const {
    Outlet<S> o = {};
    o.z = passed;
    forward_layer(net.matrix(), s.d[0], rows, o);
  }
  void through_noise(const RowTile& rows, const Stage<S>& s) const {
    for (int k = 0; k < net.args.hidden(); ++k) {
      if (k > 0) product(rows, k, v[k - 1], w[k]);
      multiply(k, s.d[k], k > 0 ? w[k] : right, v[k]);
    }
  }
  // W_k of what enters, without a bias.
  void product(const RowTile& rows, int k, const S* from, S* to) const {
    Packed<S> p = net.layer(k);
    p.bias = zeros;
    Outlet<S> o = {};
    o.z = to;
    forward_layer(p, from, rows, o);
  }

  void back_trace(const RowTile& rows, const Stage<S>& s, const S* gt, const Sums<S>* sums) const {
    const OdeArgs& a = net.args;
    const int hidden = a.hidden();
    if (a.trace == OdeTrace::noise) return back_noise(rows, s, gt, sums);
    if (hidden == 0) {
      add_rows(1, gt, grad_constant);
      return;
    }
    const Packed<S>& m = net.matrix();
    S* const of_passed = g[0];
    if (hidden == 2) {
      through_matrix(rows, s);
      each(m.n_out, m.out_width, [&](int64_t b, int64_t at) {
        const T of_trace = load_pair(gt + b * R);
        store_pair(gd[1] + at, of_trace * load_pair(passed + at));
        store_pair(of_passed + at, of_trace * load_pair(s.d[1] + at));
      });
    } else {
      each(1, m.out_width, [&](int64_t b, int64_t at) { store_pair(of_passed + at, load_pair(gt + b * R)); });
    }
    clear_pads(m.n_out, m.out_width, of_passed);
    if (hidden == 2) clear_pads(m.n_out, m.out_width, gd[1]);
    add_weights(rows, a.n, s.d[0], of_passed, sums, false);
    backward_layer<S>(m, of_passed, blocks, Activation::identity, nullptr, nullptr, nullptr, gd[0]);
  }
  void clear_pads(int64_t n, int64_t padded, S* of) const {
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t j = n; j < padded; ++j) store_pair(of + (b * padded + j) * R, T{});
  }

  void back_noise(const RowTile& rows, const Stage<S>& s, const S* gt, const Sums<S>* sums) const {
    const OdeArgs& a = net.args;
    const int hidden = a.hidden();
    through_noise(rows, s);
    const int64_t n = a.left_width(), padded = round_up(n, kPanel);
    const S* const out = hidden > 0 ? v[hidden - 1] : right;
    S *of_v = g[0], *spare_g = g[1];
    each(n, padded, [&](int64_t b, int64_t at) {
      const T of_trace = load_pair(gt + b * R);
      store_pair(grad_left + at, load_pair(grad_left + at) + of_trace * load_pair(out + at));
      store_pair(of_v + at, of_trace * load_pair(left + at));
    });
    clear_pads(n, padded, of_v);
    for (int k = hidden - 1; k >= 0; --k) {
      multiply(k, of_v, k > 0 ? w[k] : right, gd[k]);
      multiply(k, of_v, s.d[k], of_v);
      if (k == 0) break;
      add_weights(rows, k, v[k - 1], of_v, sums, false);
      backward_layer<S>(net.layer(k), of_v, blocks, Activation::identity, nullptr, nullptr, nullptr, spare_g);
      S* const next = spare_g;
      spare_g = of_v, of_v = next;
    }
    add_rows(width(0), of_v, grad_right);
  }

  void add_weights(const RowTile& rows, int k, const S* in, const S* of_z, const Sums<S>* sums, bool biased) const {
    const Packed<S>& p = net.layer(k);
    Sums<S> to = sums[k];
    if (!biased) to.bias = nullptr;
    if (!to.weight && !to.bias) return;
    if (to.weight) transpose_row_blocks(rows, in, p.in_width, p.n_in, transposed);
    weight_gradients(p, of_z, transposed, blocks, to);
  }
};

}  // namespace fk::FK_ISA
