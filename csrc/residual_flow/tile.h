// A residual block on one row block: g and its slopes, J by the tangents of the features, some features at a time, so
// that a layer's weights are read once for all of them and what lies between layers stays near.
#pragma once
#include "../net/net_tile.h"
#include "lu.h"

namespace fk::FK_ISA {

constexpr int64_t kTangents = 4;  // features, or draws of noise, at a time

// What the row blocks of a call share: weights, packed once, and the sums of its threads.
template <class S>
struct ResidualNet {
  const ResidualArgs& args;
  MaskedLayer masked[kMaxLayers];
  Call<S> call;
  Packed<S> linear[kMaxLayers];  // the layers without their biases
  S* zeros;
  S* first = nullptr;  // [parts][features][n_out][kLanes]: of the first weight's gradient, what comes through J
  S* betas = nullptr;  // [parts][activations][kRowBlock]

  ResidualNet(const ResidualArgs& a, bool backward, int parts, int threads)
      : args(a), call(NetSpec{masked, a.n, false, Activation::identity, Activation::identity}) {
    for (int k = 0; k < a.n; ++k) {
      const ResidualLayer& l = a.layers[k];
      MaskedLayer& m = masked[k] = {};
      m.weight = l.weight, m.weight_stride = l.weight_stride, m.bias = l.bias, m.n_in = l.n_in, m.n_out = l.n_out;
      m.grad_weight = l.grad_weight, m.grad_bias = l.grad_bias;
    }
    Arena counted(nullptr);
    lay(counted, backward, parts, false);
    Arena shared(workspace(Scratch::shared, counted.used()));
    lay(shared, backward, parts, true);
    pack(call.net, backward || a.estimated(), threads);
  }
  ResidualNet(const ResidualNet&) = delete;

  const Packed<S>& layer(int k) const { return call.net.layer[k]; }
  int64_t in_width(int k) const { return layer(k).in_width; }
  int64_t matrix_width() const { return layer(args.n - 1).out_width; }
  S beta(int k) const { return args.betas ? static_cast<const S*>(args.betas)[args.beta_of(k)] : S(1); }
  S first_weight(int64_t i, int64_t d) const {
    return static_cast<const S*>(args.layers[0].weight)[i * args.layers[0].weight_stride + d];
  }
  int64_t first_size() const { return args.features * args.layers[0].n_out * kLanes<S>; }

  const Sums<S>* clear(int part) const {
    if (first) memset(first + part * first_size(), 0, size_t(first_size()) * sizeof(S));
    const int64_t of_betas = args.activations() * kRowBlock<S>;
    if (betas) memset(betas + part * of_betas, 0, size_t(of_betas) * sizeof(S));
    return call.clear(part);
  }

  // Gradients of all weights, from what the threads summed.
  void finish(int parts, int threads) const {
    call.finish(parts, threads);
    const int64_t D = args.features, n = args.layers[0].n_out;
    for (int64_t at = 0; first && at < n * D; ++at) {
      double total = 0;
      for (int t = 0; t < parts; ++t)
        for (int l = 0; l < kLanes<S>; ++l)
          total += double(first[t * first_size() + (at % D * n + at / D) * kLanes<S> + l]);
      S& to = static_cast<S*>(args.layers[0].grad_weight)[at];
      to = S(double(to) + total);
    }
    for (int64_t i = 0; betas && i < args.activations(); ++i) {
      double total = 0;
      for (int t = 0; t < parts; ++t)
        for (int l = 0; l < kRowBlock<S>; ++l) total += double(betas[(t * args.activations() + i) * kRowBlock<S> + l]);
      static_cast<S*>(args.grad_betas)[i] = S(total);
    }
  }

 private:
  void lay(Arena& arena, bool backward, int parts, bool fill) {
    call.lay(arena, backward || args.estimated(), false, parts, fill);
    int64_t widest = 0;
    for (int k = 0; k < args.n; ++k) widest = layer(k).out_width > widest ? layer(k).out_width : widest;
    zeros = arena.take<S>(size_t(widest));
    if (fill) memset(zeros, 0, size_t(widest) * sizeof(S));
    for (int k = 0; k < args.n; ++k) linear[k] = layer(k), linear[k].bias = zeros;
    if (!backward) return;
    const bool through_matrix = args.layers[0].grad_weight && !args.estimated();
    first = through_matrix ? arena.take<S>(size_t(parts * first_size())) : nullptr;
    betas = args.grad_betas ? arena.take<S>(size_t(parts * args.activations() * kRowBlock<S>)) : nullptr;
  }
};

// Room of a thread, in row blocks.
template <class S>
struct ResidualTile {
  S *x, *y;                // [features]: where g is taken, and what is given or returned
  S* z[kMaxLayers + 1];    // in front of the activation before layer k; the last: g
  S* a[kMaxLayers];        // what enters layer k
  S* slope[kMaxLayers];    // of that activation
  S* tangent[kMaxLayers];  // backward, k > 1: [features][in_width], derivatives of z[k]
  S* moved[kMaxLayers];    // of estimates: [kTangents][in_width], the noise, then where it moves z[k]
  S* inner;                // of those: [kTangents][in_width(0)], what is multiplied with J's derivative from the left
  S *here, *there;         // [kTangents][widest]
  Matrices<S> matrix = {}, grad = {};      // where the determinant is exact; of an inverse's way back the first
  S* bend[kMaxLayers];                     // backward: gradients of slopes
  S *g, *product, *transposed, *of_x, *w;  // backward
  S* spare;

  ResidualTile(const ResidualNet<S>& net, bool backward, Arena& arena) {
    const ResidualArgs& r = net.args;
    const int64_t D = r.features;
    int64_t widest = net.matrix_width();
    for (int k = 0; k < r.n; ++k) widest = net.in_width(k) > widest ? net.in_width(k) : widest;
    const auto take = [&](int64_t width) { return arena.take<S>(size_t(width * kRowBlock<S>)); };
    x = take(net.in_width(0)), y = take(D);
    for (int k = 0; k < r.n; ++k) {
      z[k] = k > 0 ? take(net.in_width(k)) : x;
      a[k] = r.activated(k) ? take(net.in_width(k)) : x;
      slope[k] = r.activated(k) ? take(net.in_width(k)) : nullptr;
      tangent[k] = backward && !r.estimated() && k > 1 ? take(D * net.in_width(k)) : nullptr;
      moved[k] = r.estimated() && (backward || k == 0) ? take(kTangents * net.in_width(k)) : nullptr;
      bend[k] = backward && r.activated(k) ? take(net.in_width(k)) : nullptr;
    }
    z[r.n] = take(net.matrix_width());
    inner = r.estimated() ? take(kTangents * net.in_width(0)) : nullptr;
    here = take(kTangents * widest), there = take(kTangents * widest);
    const int64_t stride = net.matrix_width();
    if (!r.estimated() || (r.inverse && backward))
      matrix = {take(D * stride), D, stride, take(D), arena.take<char>(size_t(D))};
    if (!r.estimated() && backward) grad = {take(D * stride), D, stride, nullptr, nullptr};
    g = backward ? take(widest) : nullptr;
    product = backward ? take(kTangents * widest) : nullptr;
    transposed = backward ? take(kTangents * round_up(widest, kRowBlock<S>)) : nullptr;
    of_x = backward ? take(D) : nullptr;
    w = backward ? take(D) : nullptr;
    spare = arena.take<S>(size_t(widest));
  }
};

template <class S>
FK_INLINE RowTile whole_blocks(int64_t blocks) {
  return {0, blocks * kRowBlock<S>};
}

// g of x, and the slopes of activations where they are wanted.
template <class S>
void run_net(const ResidualNet<S>& net, const ResidualTile<S>& t, bool slopes) {
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  for (int k = 0; k < r.n; ++k) {
    if (r.activated(k)) {
      const S beta = net.beta(k);
      for (int64_t j = 0; j < r.layers[k].n_in; ++j) {
        const auto of = contract(r.activation, load_pair(t.z[k] + j * R), beta);
        store_pair(t.a[k] + j * R, of.value);
        if (slopes) store_pair(t.slope[k] + j * R, of.slope);
      }
    }
    Outlet<S> o = {};
    o.z = t.z[k + 1];
    forward_layer(net.layer(k), t.a[k], whole_blocks<S>(1), o);
  }
}

// The derivatives of z[1] by feature d.
template <class S>
FK_INLINE PairOf<S> first_tangent(const ResidualNet<S>& net, const ResidualTile<S>& t, int64_t i, int64_t d) {
  using T = PairOf<S>;
  const S w = net.first_weight(i, d);
  return t.slope[0] ? w * load_pair(t.slope[0] + d * kRowBlock<S>) : both<T>(w);
}

// What enters layer k along `some` directions, to `out`; tangent(i, d): the derivatives of z[k] along direction d.
template <class S, class F>
FK_INLINE void enter(const ResidualNet<S>& net, const ResidualTile<S>& t, int k, int64_t some, const F& tangent,
                     S* out) {
  constexpr int R = kRowBlock<S>;
  const int64_t width = net.in_width(k);
  for (int64_t d = 0; d < some; ++d)
    for (int64_t j = 0; j < net.args.layers[k].n_in; ++j) {
      const PairOf<S> of = tangent(j, d);
      store_pair(out + (d * width + j) * R, t.slope[k] ? of * load_pair(t.slope[k] + j * R) : of);
    }
}

// (I + J)^T, after run_net.
template <class S>
void fill_matrix(const ResidualNet<S>& net, const ResidualTile<S>& t) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  const int64_t D = r.features;
  for (int64_t from = 0; from < D; from += kTangents) {
    const int64_t some = D - from < kTangents ? D - from : kTangents;
    if (r.n == 1) {
      for (int64_t d = from; d < from + some; ++d)
        for (int64_t o = 0; o < D; ++o) store_pair(t.matrix.of(d, o), first_tangent(net, t, o, d));
      continue;
    }
    const S* before = nullptr;
    for (int k = 1; k < r.n; ++k) {
      const int64_t width = net.in_width(k);
      if (k == 1)
        enter(net, t, k, some, [&](int64_t i, int64_t d) { return first_tangent(net, t, i, from + d); }, t.here);
      else
        enter(net, t, k, some, [&](int64_t i, int64_t d) { return load_pair(before + (d * width + i) * R); }, t.here);
      Outlet<S> o = {};
      S* const kept = k + 1 < r.n ? t.tangent[k + 1] : nullptr;
      o.z = k + 1 == r.n ? t.matrix.of(from, 0) : kept ? kept + from * net.in_width(k + 1) * R : t.there;
      before = o.z;
      forward_layer(net.linear[k], t.here, whole_blocks<S>(some), o);
    }
  }
  for (int64_t d = 0; d < D; ++d) store_pair(t.matrix.of(d, d), t.matrix.get(d, d) + both<T>(S(1)));
}

// x of x + g(x) = y, by Banach's iteration: a row rests once its step says that it is there.
template <class S>
void iterate(const ResidualNet<S>& net, const ResidualTile<S>& t) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& r = net.args;
  const S rounding = sizeof(S) == 4 ? S(0x1p-22) : S(0x1p-51);  // twice the distance of numbers near 1
  memcpy(t.x, t.y, size_t(r.features * R) * sizeof(S));
  T moves = both<T>(S(1));  // 0 in lanes that rest
  for (int64_t i = 0; i < r.steps && any_(moves > S(0)); ++i) {
    run_net(net, t, false);
    T step = {}, size = {};
    for (int64_t d = 0; d < r.features; ++d) {
      const T x = load_pair(t.x + d * R);
      const T following = select(moves > S(0), load_pair(t.y + d * R) - load_pair(t.z[r.n] + d * R), x);
      const T moved = abs_(following - x);
      step = select((step < moved) | (moved != moved), moved, step);  // once no number, always so
      size = max_(abs_(following), size);
      store_pair(t.x + d * R, following);
    }
    // A step that is no number rests, too.
    moves = select(max_(rounding * size, both<T>(S(r.least))) < step, moves, T{});
  }
}

}  // namespace fk::FK_ISA
