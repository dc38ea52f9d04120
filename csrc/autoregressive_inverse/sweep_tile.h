// The autoregressive inverse in one sweep, on a tile of rows: a hidden unit is computed once, when the last feature it
// sees is known. The backward pass is the same sweep from the other end: a triangular solve with the network's
// Jacobian. The op does it once, a whole flow layer after layer.
#pragma once
#include "../univariate/map_cpu.h"
#include "autoregressive_inverse.h"
#include "circle_shift.h"
#include "frontier.h"
#include "periodic_features.h"

namespace fk::FK_ISA {

template <class S>
FK_INLINE int64_t feature_at(const Net<S>& net, int64_t f) {
  return net.layer[0].in_at(f);
}

// Features [first, first + n) in degree order of a row block that holds features in memory's order, of which `skipped`
// rows come before the block that the map is given.
template <class S>
FK_INLINE MappedFeatures<S> next_features(const Net<S>& net, int64_t first, int64_t n, int n_params, S* params,
                                          int64_t* skipped) {
  const int32_t* const order = net.layer[0].layer->in_order;
  *skipped = order ? 0 : first * kRowBlock<S>;
  return {order ? order + first : nullptr, n, params, nullptr, first * n_params, n_params};
}

// ---- forward ----

template <class S, class T>
FK_INLINE T shifted_pair(const CircleShift& shift, T v) {
  alignas(64) S lanes[kRowBlock<S>];
  store_pair(lanes, v);
  for (S& s : lanes) s = shifted(shift, s);
  return load_pair(lanes);
}

// 0 where z is outside of the box that a spline's inverse takes; a NaN stays one.
template <class S, class T>
FK_INLINE T zero_outside_pair(const ZeroOutside& box, const S* z, T v) {
  const S low = S(box.low), high = S(box.high);
  alignas(64) S lanes[kRowBlock<S>];
  store_pair(lanes, v);
  for (int l = 0; l < kRowBlock<S>; ++l) lanes[l] = z[l] < low || z[l] > high ? S(0) : lanes[l];
  return load_pair(lanes);
}

template <class S, class T>
FK_INLINE T seen_pair(const PeriodicFeature<S>& feature, T v) {
  if (feature.is_line()) return v * feature.linear + feature.offset;
  alignas(64) S lanes[kRowBlock<S>];
  store_pair(lanes, v);
  for (S& s : lanes) s = feature(s);
  return load_pair(lanes);
}

// The buffers of a tile, [row block][feature or unit][kRowBlock].
template <class S>
struct SweepTile {
  S* a[kMaxLayers + 1];  // what enters layer i, in degree order; a[n]: the parameters
  S *add[kMaxLayers], *gate[kMaxLayers];
  S* sums[kMaxLayers];
  S* stream = nullptr;
  S *z, *x, *spare;  // features in memory's order
  BlockMap<S> map;

  SweepTile(const Net<S>& net, const UnivariateMap& map, int64_t features, int64_t blocks, Arena& arena)
      : map(block_map<S>(map, arena)) {
    const int64_t R = kRowBlock<S> * blocks;
    const NetSpec& spec = net.spec;
    int64_t widest = features;
    for (int i = 0; i < spec.n; ++i) {
      const Packed<S>& p = net.layer[i];
      widest = p.out_width > widest ? p.out_width : widest;
      sums[i] = arena.take<S>(size_t(kPanel * R));
      add[i] = p.layer->add ? arena.take<S>(size_t(p.out_width * R)) : nullptr;
      gate[i] = p.layer->gate ? arena.take<S>(size_t(p.out_width * R)) : nullptr;
    }
    if (spec.residual) stream = arena.take<S>(size_t(widest * R));
    for (int i = 0; i <= spec.n; ++i) {
      const int64_t width = i < spec.n ? net.layer[i].in_width : net.layer[i - 1].out_width;
      a[i] = spec.residual && i == spec.n - 1 ? stream : arena.take<S>(size_t(width * R));
    }
    z = arena.take<S>(size_t(features * R));
    x = arena.take<S>(size_t(features * R));
    spare = arena.take<S>(size_t(features));
  }
};

// What a sweep does besides to what its map returns, and to what its network sees.
struct SweepMore {
  CircleShift shift = {};
  ZeroOutside zero_outside = {};
  const void* periodic_features = nullptr;
};

// From the features in t.z to those in t.x; ladj [row blocks][kRowBlock].
template <class S>
void sweep_tile(const Net<S>& net, int P, const SweepMore& more, const RowTile& rows, const SweepTile<S>& t, S* ladj) {
  using T = typename BlockMap<S>::T;
  constexpr int R = kRowBlock<S>;
  const NetSpec& spec = net.spec;
  const int n = spec.n;
  const int64_t D = net.layer[0].n_in, blocks = rows.blocks<S>();
  Frontier frontier[kMaxLayers];
  Outlet<S> outlet[kMaxLayers];
  for (int i = 0; i < n; ++i) {
    const Packed<S>& p = net.layer[i];
    frontier[i] = {0, -1};
    Outlet<S>& o = outlet[i] = {};
    o.add = load_term(p, rows, p.layer->add, p.layer->add_stride, t.add[i]);
    o.gate = load_term(p, rows, p.layer->gate, p.layer->gate_stride, t.gate[i]);
    if (spec.residual && i < n - 1 && i % 2 == 0) o.z = t.stream;
    if (spec.closes_block(i)) o.residual = t.stream;
    if (t.a[i + 1] != o.z) o.a = t.a[i + 1];
    o.activation = spec.input_activation(i + 1);
  }
  LadjSum<T> sum[kMaxRowBlocks];
  for (int64_t known = 0; known < D;) {
    for (int i = 0; i < n; ++i) {
      const int64_t inputs = i == 0 ? known : frontier[i - 1].at;
      // What a block adds to must be there.
      const int64_t cap = spec.closes_block(i) ? frontier[i - 2].at : net.layer[i].n_out;
      advance(net.layer[i], frontier[i], inputs, cap, rows, t.a[i], t.sums[i], outlet[i]);
    }
    const int64_t ready = frontier[n - 1].at / P;
    if (ready == known) sweep_is_stuck();
    for (int64_t s = 0; s < blocks; ++s) {
      S *const z = t.z + s * D * R, *const x = t.x + s * D * R;
      int64_t skipped;
      const MappedFeatures<S> next =
          next_features(net, known, ready - known, P, t.a[n] + s * net.last().out_width * R, &skipped);
      t.map.eval(t.map.map, next, z + skipped, x + skipped, sum[s]);
      for (int64_t k = known; k < ready; ++k) {
        const int64_t at = feature_at(net, k) * R;
        T out = load_pair(x + at);
        if (more.zero_outside.wanted) out = zero_outside_pair<S>(more.zero_outside, z + at, out);
        if (more.shift.by != 0) out = shifted_pair<S>(more.shift, out);
        store_pair(x + at, out);
        if (more.periodic_features)
          out = seen_pair(static_cast<const PeriodicFeature<S>*>(more.periodic_features)[feature_at(net, k)], out);
        store_pair(t.a[0] + (s * net.layer[0].in_width + k) * R, out);
      }
    }
    known = ready;
  }
  for (int64_t s = 0; s < blocks; ++s) store_pair(ladj + s * R, sum[s].total());
}

// ---- backward ----

template <class S>
struct SweepBackTile {
  Tile<S> net;
  S* g[kMaxLayers];                         // gradients of what each layer computes, in row blocks
  S *gate[kMaxLayers], *gated[kMaxLayers];  // gates, and the gradients before them; of layers without one null and g
  S* sums[kMaxLayers];
  S *z, *slope, *gx, *gz, *spare;  // [row blocks][features][kRowBlock]; gx in degree order, the others in memory's
  BlockMap<S> map;

  SweepBackTile(const Net<S>& n, const UnivariateMap& map, int64_t features, bool has_slope, int64_t blocks,
                Arena& arena)
      : net(n, blocks, true, arena), map(block_map<S>(map, arena)) {
    constexpr int R = kRowBlock<S>;
    for (int i = 0; i < n.spec.n; ++i) {
      const size_t size = size_t(n.layer[i].out_width * R * blocks);
      const bool has_gate = n.layer[i].layer->gate;
      g[i] = arena.take<S>(size);
      gate[i] = has_gate ? arena.take<S>(size) : nullptr;
      gated[i] = has_gate ? arena.take<S>(size) : g[i];
      sums[i] = arena.take<S>(size_t(kPanel * R * blocks));
    }
    const size_t size = size_t(features * R * blocks);
    z = arena.take<S>(size);
    slope = has_slope ? arena.take<S>(size) : nullptr;
    gx = arena.take<S>(size_t(n.layer[0].in_width * R * blocks));
    gz = arena.take<S>(size);
    spare = arena.take<S>(size_t(features));
  }
};

// From the gradient of x in memory's order (in gz) to that of z; leaves the gradients of all layers.
template <class S>
void solve_back(const Net<S>& net, int P, const RowTile& rows, const SweepBackTile<S>& t, const S* grad_ladj) {
  using T = typename BlockMap<S>::T;
  constexpr int R = kRowBlock<S>;
  const NetSpec& spec = net.spec;
  const int n = spec.n;
  const int64_t D = net.layer[0].n_in, blocks = rows.blocks<S>();
  Frontier frontier[kMaxLayers];  // of the inputs of layer i, whose gradients are those of layer i - 1's z
  Inlet<S> inlet[kMaxLayers];
  for (int i = 0; i < n; ++i) {
    frontier[i] = {net.layer[i].n_in, -1};
    inlet[i] = {spec.input_activation(i), t.net.a[i], t.net.z[i], nullptr, i == 0 ? t.gx : t.g[i - 1]};
    if (spec.opens_block(i)) inlet[i].residual = t.g[i + 1];  // the stream passes a block by
    if (i > 0) inlet[i].gate = t.gate[i - 1], inlet[i].gated = t.gated[i - 1];
  }
  const auto retreat_hidden = [&](int64_t outputs) {
    for (int i = n - 1; i > 0; --i) {
      const int64_t cap = spec.opens_block(i) ? frontier[i + 2].at : 0;
      retreat(net.layer[i], frontier[i], i == n - 1 ? outputs : frontier[i + 1].at, cap, blocks, t.gated[i], t.sums[i],
              inlet[i]);
    }
  };
  int64_t done = D;  // features from it on have given their parameters' gradients
  while (done > 0) {
    retreat_hidden(done * P);
    retreat(net.layer[0], frontier[0], n > 1 ? frontier[1].at : done * P, 0, blocks, t.g[0], t.sums[0], inlet[0]);
    if (done == frontier[0].at) sweep_is_stuck();
    const int64_t first = frontier[0].at;
    for (int64_t s = 0; s < blocks; ++s) {
      const int64_t width = net.last().out_width;
      S *const z = t.z + s * D * R, *const gz = t.gz + s * D * R;
      const S* const gx = t.gx + s * net.layer[0].in_width * R;
      S* const slope = t.slope ? t.slope + s * D * R : nullptr;  // becomes the gradient of x
      for (int64_t f = first; slope && f < done; ++f) {
        const int64_t at = feature_at(net, f) * R;
        store_pair(slope + at, load_pair(gx + f * R) * load_pair(slope + at));
      }
      for (int64_t f = first; f < done; ++f) {
        const int64_t at = feature_at(net, f) * R;
        store_pair(gz + at, load_pair(slope ? slope + at : gx + f * R) + load_pair(gz + at));
      }
      int64_t skipped;
      const MappedFeatures<S> next = next_features(net, first, done - first, P, t.net.a[n] + s * width * R, &skipped);
      const T g_ladj = load_pair(grad_ladj + s * R);
      t.map.grad(t.map.map, next, t.g[n - 1] + s * width * R, z + skipped, gz + skipped, g_ladj);
    }
    done = first;
  }
  retreat_hidden(0);
}

// Gradients of a tile: of what the network saw, in t.net.a[0], of z, in t.z, and of x, in t.gz, which becomes that of
// z; grad_ladj [row blocks][kRowBlock]. Weights and biases add to `sums`, or are the `first` there.
template <class S>
void sweep_back_tile(const Net<S>& net, int P, const RowTile& rows, const Sums<S>* sums, bool is_first,
                     const SweepBackTile<S>& t, const S* grad_ladj) {
  constexpr int R = kRowBlock<S>;
  const int n = net.spec.n;
  const int64_t blocks = rows.blocks<S>();
  forward_tile(net, rows, t.net, n);
  for (int i = 0; i < n; ++i) {
    const MaskedLayer& layer = *net.layer[i].layer;
    load_term(net.layer[i], rows, layer.gate, layer.gate_stride, t.gate[i]);
  }
  solve_back(net, P, rows, t, grad_ladj);
  for (int i = 0; i < n; ++i) {
    const Packed<S>& p = net.layer[i];
    const auto store_term = [&](void* to, const S* from) {
      if (to) store_row_blocks(rows, from, p.out_width, p.out_rank, p.n_out, static_cast<S*>(to), t.net.spare);
    };
    clear_past_end(rows, p.out_width, t.gated[i]);
    if (p.layer->grad_gate) {
      multiply_into(blocks * p.out_width * R, t.g[i], t.net.ungated[i], t.g[i]);
      store_term(p.layer->grad_gate, t.g[i]);
    }
    store_term(p.layer->grad_add, t.gated[i]);
    if (sums[i].weight) transpose_row_blocks(rows, t.net.a[i], p.in_width, p.n_in, t.net.transposed);
    weight_gradients(p, t.gated[i], t.net.transposed, blocks, sums[i], is_first);
  }
}

// Compiled in autoregressive_inverse_cpu.cpp, once for the op and for whole flows.
#define FK_SWEEP_FUNCTIONS(EXTERN, S)                                                                             \
  EXTERN template void sweep_tile(const Net<S>&, int, const SweepMore&, const RowTile&, const SweepTile<S>&, S*); \
  EXTERN template void sweep_back_tile(const Net<S>&, int, const RowTile&, const Sums<S>*, bool,                  \
                                       const SweepBackTile<S>&, const S*)
FK_SWEEP_FUNCTIONS(extern, float);
FK_SWEEP_FUNCTIONS(extern, double);

}  // namespace fk::FK_ISA
