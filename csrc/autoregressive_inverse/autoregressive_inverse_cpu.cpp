// The autoregressive inverse in one sweep: a hidden unit is computed once, when the last feature it sees is known. The
// backward pass is the same sweep from the other end: a triangular solve with the network's Jacobian.
#include "../common/kernels.h"
#include "../univariate/map_cpu.h"
#include "autoregressive_inverse.h"
#include "circle_shift.h"
#include "frontier.h"
#include "periodic_features.h"

namespace fk::FK_ISA {
namespace {

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
struct ForwardTile {
  S* a[kMaxLayers + 1];  // what enters layer i, in degree order; a[n]: the parameters
  S *add[kMaxLayers], *gate[kMaxLayers];
  S* sums[kMaxLayers];
  S* stream = nullptr;
  S *z, *x, *spare;  // features in memory's order
  BlockMap<S> map;

  ForwardTile(const Net<S>& net, const SweepArgs& args, int64_t blocks, Arena& arena)
      : map(block_map<S>(args.map, arena)) {
    const int64_t R = kRowBlock<S> * blocks;
    const NetSpec& spec = net.spec;
    int64_t widest = args.features;
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
    z = arena.take<S>(size_t(args.features * R));
    x = arena.take<S>(size_t(args.features * R));
    spare = arena.take<S>(size_t(args.features));
  }
};

template <class S>
void sweep_forward(const SweepArgs& args, const Net<S>& net, const RowTile& rows, ForwardTile<S>& t) {
  using T = typename BlockMap<S>::T;
  constexpr int R = kRowBlock<S>;
  const NetSpec& spec = net.spec;
  const int n = spec.n, P = args.map.params();
  const int64_t D = args.features, blocks = rows.blocks<S>();
  load_row_blocks(rows, static_cast<const S*>(args.z), args.z_stride, D, nullptr, D, t.z);
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
  LadjSum<T> ladj[kMaxRowBlocks];
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
      t.map.eval(t.map.map, next, z + skipped, x + skipped, ladj[s]);
      for (int64_t k = known; k < ready; ++k) {
        const int64_t at = feature_at(net, k) * R;
        T out = load_pair(x + at);
        if (args.zero_outside.wanted) out = zero_outside_pair<S>(args.zero_outside, z + at, out);
        if (args.shift.by != 0) out = shifted_pair<S>(args.shift, out);
        store_pair(x + at, out);
        if (args.periodic_features)
          out = seen_pair(static_cast<const PeriodicFeature<S>*>(args.periodic_features)[feature_at(net, k)], out);
        store_pair(t.a[0] + (s * net.layer[0].in_width + k) * R, out);
      }
    }
    known = ready;
  }
  store_row_blocks(rows, t.x, D, nullptr, D, static_cast<S*>(args.x), t.spare);
  for (int64_t s = 0; s < blocks; ++s) {
    alignas(64) S total[R];
    store_pair(total, ladj[s].total());
    const int64_t used = rows.rows - s * R;
    memcpy(static_cast<S*>(args.ladj) + rows.first + s * R, total, size_t(used < R ? used : R) * sizeof(S));
  }
}

// ---- backward ----

template <class S>
struct BackwardTile {
  Tile<S> net;
  S* g[kMaxLayers];                         // gradients of what each layer computes, in row blocks
  S *gate[kMaxLayers], *gated[kMaxLayers];  // gates, and the gradients before them; of layers without one null and g
  S* sums[kMaxLayers];
  S *z, *slope, *gx, *gz, *spare;  // [row blocks][features][kRowBlock]; gx in degree order, the others in memory's
  BlockMap<S> map;

  BackwardTile(const Net<S>& n, const SweepArgs& args, int64_t blocks, Arena& arena)
      : net(n, blocks, true, arena), map(block_map<S>(args.map, arena)) {
    constexpr int R = kRowBlock<S>;
    for (int i = 0; i < n.spec.n; ++i) {
      const size_t size = size_t(n.layer[i].out_width * R * blocks);
      const bool has_gate = n.layer[i].layer->gate;
      g[i] = arena.take<S>(size);
      gate[i] = has_gate ? arena.take<S>(size) : nullptr;
      gated[i] = has_gate ? arena.take<S>(size) : g[i];
      sums[i] = arena.take<S>(size_t(kPanel * R * blocks));
    }
    const size_t size = size_t(args.features * R * blocks);
    z = arena.take<S>(size);
    slope = args.slope ? arena.take<S>(size) : nullptr;
    gx = arena.take<S>(size_t(n.layer[0].in_width * R * blocks));
    gz = arena.take<S>(size);
    spare = arena.take<S>(size_t(args.features));
  }
};

// From the gradient of x in memory's order (in gz) to that of z; leaves the gradients of all layers.
template <class S>
void solve_back(const SweepArgs& args, const Net<S>& net, const RowTile& rows, BackwardTile<S>& t) {
  using T = typename BlockMap<S>::T;
  constexpr int R = kRowBlock<S>;
  const NetSpec& spec = net.spec;
  const int n = spec.n, P = args.map.params();
  const int64_t D = args.features, blocks = rows.blocks<S>();
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
  T g_ladj[kMaxRowBlocks];
  const S* grad_ladj = static_cast<const S*>(args.grad_ladj);
  for (int64_t s = 0; s < blocks; ++s) {
    alignas(64) S gl[R] = {};
    for (int64_t l = 0; grad_ladj && l < R && s * R + l < rows.rows; ++l) gl[l] = grad_ladj[rows.first + s * R + l];
    g_ladj[s] = load_pair(gl);
  }
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
      S* const slope = args.slope ? t.slope + s * D * R : nullptr;  // becomes the gradient of x
      for (int64_t f = first; args.slope && f < done; ++f) {
        const int64_t at = feature_at(net, f) * R;
        store_pair(slope + at, load_pair(gx + f * R) * load_pair(slope + at));
      }
      for (int64_t f = first; f < done; ++f) {
        const int64_t at = feature_at(net, f) * R;
        store_pair(gz + at, load_pair(args.slope ? slope + at : gx + f * R) + load_pair(gz + at));
      }
      int64_t skipped;
      const MappedFeatures<S> next = next_features(net, first, done - first, P, t.net.a[n] + s * width * R, &skipped);
      t.map.grad(t.map.map, next, t.g[n - 1] + s * width * R, z + skipped, gz + skipped, g_ladj[s]);
    }
    done = first;
  }
  retreat_hidden(0);
}

template <class S>
void sweep_backward(const SweepArgs& args, const Net<S>& net, const RowTile& rows, const Sums<S>* sums,
                    BackwardTile<S>& t) {
  constexpr int R = kRowBlock<S>;
  const int n = net.spec.n;
  const int64_t D = args.features, blocks = rows.blocks<S>();
  const Packed<S>& first = net.layer[0];
  load_row_blocks(rows, static_cast<const S*>(args.z), args.z_stride, D, nullptr, D, t.z);
  const S* const seen = static_cast<const S*>(args.seen ? args.seen : args.x);
  load_row_blocks(rows, seen, D, D, first.in_rank, first.in_width, t.net.a[0]);
  if (args.slope) load_row_blocks(rows, static_cast<const S*>(args.slope), D, D, nullptr, D, t.slope);
  if (args.grad_x)
    load_row_blocks(rows, static_cast<const S*>(args.grad_x), D, D, nullptr, D, t.gz);
  else
    memset(t.gz, 0, size_t(blocks * D * R) * sizeof(S));
  forward_tile(net, rows, t.net, n);
  for (int i = 0; i < n; ++i) {
    const MaskedLayer& layer = *net.layer[i].layer;
    load_term(net.layer[i], rows, layer.gate, layer.gate_stride, t.gate[i]);
  }
  solve_back(args, net, rows, t);
  if (args.grad_z) store_row_blocks(rows, t.gz, D, nullptr, D, static_cast<S*>(args.grad_z), t.spare);
  if (args.grad_seen)
    store_row_blocks(rows, t.gx, first.in_width, first.in_rank, D, static_cast<S*>(args.grad_seen), t.spare);
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
    weight_gradients(p, t.gated[i], t.net.transposed, blocks, sums[i]);
  }
}

// ---- the whole batch ----

// Multiply-adds a row, or what takes as long.
int64_t work(const SweepArgs& a) { return a.net.work() + a.features * a.map.params() * kParamWork; }

template <class S>
void fwd(const SweepArgs& a, int threads) {
  const Deal<S> deal(a.net, a.rows, work(a), threads);
  const Call<S> call(a.net, false, a.rows, deal.parts, threads);
  deal.share([&](const auto& next) {
    auto tile =
        in_scratch(Scratch::tile, [&](Arena& arena) { return ForwardTile<S>(call.net, a, deal.blocks(), arena); });
    RowTile rows;
    while (next(&rows)) sweep_forward(a, call.net, rows, tile);
  });
}

template <class S>
void bwd(const SweepArgs& a, int threads) {
  const Deal<S> deal(a.net, a.rows, 2 * work(a), threads);
  const Call<S> call(a.net, true, a.rows, deal.parts, threads);
  deal.run([&](int part, int64_t b, int64_t e) {
    auto tile =
        in_scratch(Scratch::tile, [&](Arena& arena) { return BackwardTile<S>(call.net, a, deal.blocks(), arena); });
    const Sums<S>* sums = call.clear(part);
    for (; b < e; ++b) sweep_backward(a, call.net, deal.tile(b), sums, tile);
  });
  call.finish(deal.parts, threads);
}

void fwd_any(const SweepArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const SweepArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<SweepArgs> sweep_kernels;
const Kernels<SweepArgs> sweep_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
