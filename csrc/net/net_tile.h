// A network of masked layers on a tile of rows. The whole network runs on one tile before the next is touched, so
// nothing between input and output leaves the cache, and backward computes it again instead of reading it back.
#pragma once
#include "../common/parallel.h"
#include "normal_cdf.h"

#include "activation.h"
#include "few_rows.h"
#include "net.h"

namespace fk::FK_ISA {

// A tile's activations should stay in the second-level cache beside a layer's weights.
constexpr int64_t kTileBytes = 768 << 10;
constexpr int64_t kMaxRowBlocks = 4;

// ---- one layer ----

// What happens to a layer's sums on their way out of registers. All in row blocks; null: not wanted.
template <class S>
struct Outlet {
  const S* add;
  S* ungated;
  const S* gate;
  const S* residual;  // added last; may be `z`
  S* z;
  S* a;  // the activation of z, or of z scale + shift
  Activation activation;
  const S *scale, *shift;  // one for each unit, where put is told which

  FK_INLINE void put(int64_t to, typename Simd<S>::V v, int64_t unit = 0) const {
    using V = typename Simd<S>::V;
    if (add) v += load<V>(add + to);
    if (gate) {
      if (ungated) store(ungated + to, v);
      v *= load<V>(gate + to);
    }
    if (residual) v += load<V>(residual + to);
    if (z) store(z + to, v);
    if (scale) v = v * splat<V>(scale[unit]) + splat<V>(shift[unit]);
    if (a) store(a + to, activate(activation, v));
  }
};

// What a layer adds or multiplies with, in row blocks; null where there is none.
template <class S>
const S* load_term(const Packed<S>& p, const RowTile& rows, const void* from, int64_t stride, S* to) {
  if (!from) return nullptr;
  load_row_blocks(rows, static_cast<const S*>(from), stride, p.n_out, p.out_rank, p.out_width, to);
  return to;
}

template <class S>
void forward_layer(const Packed<S>& p, const S* in, const RowTile& rows, const Outlet<S>& o) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  const int64_t blocks = rows.blocks<S>();
  const bool half = rows.half<S>();
  if (p.few_in) {
    mirror(p, in, 0, p.n_in, rows.rows);
    for (int64_t j = 0; j < p.n_out; ++j) {
      const FewUnit<S> unit = few_unit(p, j, rows.rows, p.n_in, in);
      for (int h = 0; h < kFewLanes<S>; h += L) o.put(j * R + h, unit.lanes[h / L], j);
    }
    return;
  }
  for (int64_t panel = 0; panel < p.panels(); ++panel) {
    const S* w = p.weights + p.offset[panel];
    for (int64_t s = 0; s < blocks; ++s) {
      V acc[kPanel][2];
#pragma GCC unroll 12
      for (int m = 0; m < kPanel; ++m) acc[m][0] = acc[m][1] = splat<V>(p.bias[panel * kPanel + m]);
      const S* from = in + s * p.in_width * R;
      half ? multiply_half_panel(w, from, p.depth[panel], acc) : multiply_panel(w, from, p.depth[panel], acc);
      const int64_t at = (s * p.out_width + panel * kPanel) * R;
      for (int i = 0; i < 2 * kPanel; ++i) o.put(at + i * L, acc[i / 2][i % 2], panel * kPanel + i / 2);
    }
  }
}

// grad of the layer's input = W^T g, times the slope of the activation that made that input, plus `residual`. Where
// only the first `half` of one block has rows, the other is not computed.
template <class S>
void backward_layer(const Packed<S>& p, const S* g, int64_t blocks, Activation act, const S* a, const S* z,
                    const S* residual, S* out, bool half = false) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  for (int64_t panel = 0; panel < p.panels_t(); ++panel) {
    const S* w = p.weights_t + p.offset_t[panel];
    const int64_t first = p.begin[panel];
    for (int64_t s = 0; s < blocks; ++s) {
      V acc[kPanel][2] = {};
      const S* const from = g + (s * p.out_width + first) * R;
      half ? multiply_half_panel(w, from, p.n_out - first, acc) : multiply_panel(w, from, p.n_out - first, acc);
      const int64_t at = (s * p.in_width + panel * kPanel) * R;
      for (int i = 0; i < 2 * kPanel; ++i) {
        const int64_t to = at + i * L;
        V v = acc[i / 2][i % 2], in = z ? load<V>(z + to) : V{};
        if (p.scale) in = in * splat<V>(p.scale[panel * kPanel + i / 2]) + splat<V>(p.shift[panel * kPanel + i / 2]);
        if (act != Activation::identity) v *= activation_slope(act, load<V>(a + to), in);
        if (residual) v += load<V>(residual + to);
        store(out + to, v);
      }
    }
  }
}

// Gradients of weights and biases, summed over a thread's rows, in degree order.
template <class S>
struct Sums {
  S* weight;  // [out_width][columns], or the caller's own, [n_out][n_in]
  S* bias;    // [2][out_width][kRowBlock]: sums, and what their rounding lost
  int64_t columns;
  S* scale;  // [scale, shift][2][in_width][kRowBlock], the same; or null
};

// sum += terms, one after the other, of one vector of lanes; `lost` gets what rounding takes from it.
template <class S, class Term>
FK_INLINE void add_compensated(S* sum_at, S* lost_at, int64_t n, const Term& term_of) {
  using V = typename Simd<S>::V;
  V sum = load<V>(sum_at), lost = load<V>(lost_at);
  for (int64_t s = 0; s < n; ++s) {
    const V term = term_of(s), next = sum + term, part = next - sum;
    lost += (sum - (next - part)) + (term - part);
    sum = next;
  }
  store(sum_at, sum);
  store(lost_at, lost);
}

// g, the gradient of z scale + shift, back to z: stream += g scale; those of scale and shift add to `sums`.
template <class S>
void backward_scale(const Packed<S>& p, const S* g, const S* z, int64_t blocks, const Sums<S>& sums, S* stream) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  const int64_t width = p.in_width * kRowBlock<S>;
  for (int64_t i = 0; i < width; i += L) {
    const V scale = splat<V>(p.scale[i / kRowBlock<S>]);
    for (int64_t at = i; at < blocks * width; at += width)
      store(stream + at, load<V>(stream + at) + load<V>(g + at) * scale);
    if (!sums.scale) continue;
    S* const of_shift = sums.scale + 2 * width;
    add_compensated(sums.scale + i, sums.scale + width + i, blocks,
                    [&](int64_t s) { return load<V>(g + s * width + i) * load<V>(z + s * width + i); });
    add_compensated(of_shift + i, of_shift + width + i, blocks, [&](int64_t s) { return load<V>(g + s * width + i); });
  }
}

// Adds a tile's; the `first` of a thread's tiles writes sums of weights that nobody has set to zero. `last`: how many
// rows the last block has.
template <class S>
void weight_gradients(const Packed<S>& p, const S* g, const S* transposed, int64_t blocks, const Sums<S>& sums,
                      bool first = false, int64_t last = kRowBlock<S>) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  const int64_t width = p.out_width * R;
  const bool tight = sums.weight && sums.weight == p.layer->grad_weight;  // nothing behind the last row and column
  if (sums.weight)
    for (int64_t k = 0; k < p.n_in; k += R)
      for (int64_t panel = 0; panel < p.panels(); ++panel) {
        if (p.depth[panel] <= k) continue;
        const S* from = transposed + k * blocks * R;
        S* to = sums.weight + panel * kPanel * sums.columns + k;
        // Rows of the sums lie too far apart for the processor to foresee them.
        for (int m = 0; m < kPanel; ++m) {
          __builtin_prefetch(to + m * sums.columns, 1);
          __builtin_prefetch(to + m * sums.columns + L, 1);
        }
        V acc[kPanel][2] = {};
        for (int64_t s = 0; s < blocks; ++s)
          multiply_rows(g + s * width + panel * kPanel * R, from + s * R * R, R, s + 1 < blocks ? R : last, acc);
        const int64_t units = tight && p.n_out - panel * kPanel < kPanel ? p.n_out - panel * kPanel : kPanel;
        if (tight && p.n_in - k < R) {
          for (int64_t m = 0; m < units; ++m, to += sums.columns) {
            S more[R];
            store(more, acc[m][0]), store(more + L, acc[m][1]);
            for (int64_t i = 0; i < p.n_in - k; ++i) to[i] = (first ? S(0) : to[i]) + more[i];
          }
          continue;
        }
        for (int64_t m = 0; m < units; ++m, to += sums.columns) {
          store(to, (first ? V{} : load<V>(to)) + acc[m][0]);
          store(to + L, (first ? V{} : load<V>(to + L)) + acc[m][1]);
        }
      }
  if (sums.bias)  // compensated: a sum of a batch's rows, one after the other, would lose digits with their number
    for (int64_t i = 0; i < width; i += L)
      add_compensated(sums.bias + i, sums.bias + width + i, blocks,
                      [&](int64_t s) { return load<V>(g + s * width + i); });
}

// ---- the network on one tile of rows ----

template <class S>
struct Net {
  NetSpec spec;
  Packed<S> layer[kMaxLayers];

  const Packed<S>& last() const { return layer[spec.n - 1]; }
};

// The buffers of a tile, all in row blocks. With `keep` what enters each layer has its own, for backward; otherwise two
// take turns.
template <class S>
struct Tile {
  S* a[kMaxLayers + 1];  // what enters layer i; the last: what leaves the net
  S* z[kMaxLayers + 1];  // the same before its activation: the residual stream, or what the slope needs; or null
  S* ungated[kMaxLayers];
  S *add, *gate;
  S* g[3];        // gradients: two in turn, and the stream's
  S* transposed;  // what enters a layer, row-major
  S* spare;       // where rows past the end go

  Tile(const Net<S>& net, int64_t blocks, bool keep, Arena& arena) {
    const NetSpec& spec = net.spec;
    int64_t widest = 0, widest_in = 0;
    bool gated = false;
    for (int i = 0; i < spec.n; ++i) {
      const Packed<S>& p = net.layer[i];
      widest = p.in_width > widest ? p.in_width : widest;
      widest = p.out_width > widest ? p.out_width : widest;
      widest_in = p.n_in > widest_in ? p.n_in : widest_in;
      gated |= p.layer->gate != nullptr;
    }
    const auto take = [&](int64_t width) { return arena.take<S>(size_t(width * blocks * kRowBlock<S>)); };
    S* const turns[2] = {keep ? nullptr : take(widest), keep ? nullptr : take(widest)};
    S* const stream = spec.residual ? take(widest) : nullptr;
    for (int i = 0; i <= spec.n; ++i) {
      const int64_t width = i < spec.n ? net.layer[i].in_width : net.layer[i - 1].out_width;
      const bool streams = spec.residual && i % 2 == 1, scaled = i < spec.n && net.layer[i].scale;
      const bool needed = keep && (scaled || !from_output(spec.input_activation(i)));
      z[i] = needed ? take(width) : streams ? stream : nullptr;
      a[i] = streams && i == spec.n - 1 ? z[i] : keep ? take(width) : turns[i % 2];
      if (i < spec.n) ungated[i] = keep && net.layer[i].layer->gate ? take(net.layer[i].out_width) : nullptr;
    }
    add = take(widest);
    gate = gated ? take(widest) : nullptr;
    for (S*& buffer : g) buffer = keep ? take(widest) : nullptr;
    transposed = keep ? take(round_up(widest_in, kRowBlock<S>)) : nullptr;
    spare = arena.take<S>(size_t(widest));
  }
};

// Runs the layers [0, end) on what lies in a[0]. Inputs of layers that are kept are written, or, with `again`, read
// where the layer before would only have made them.
template <class S>
void forward_tile(const Net<S>& net, const RowTile& rows, const Tile<S>& t, int end, bool again = false) {
  for (int i = 0; i < end; ++i) {
    const Packed<S>& p = net.layer[i];
    S* const kept = i + 1 < net.spec.n ? static_cast<S*>(net.layer[i + 1].layer->kept) : nullptr;
    if (kept && again) {
      load_row_blocks(rows, kept, p.n_out, p.n_out, nullptr, p.out_width, t.a[i + 1]);
      continue;
    }
    Outlet<S> o = {};
    o.add = load_term(p, rows, p.layer->add, p.layer->add_stride, t.add);
    o.gate = load_term(p, rows, p.layer->gate, p.layer->gate_stride, t.gate);
    o.ungated = t.ungated[i];
    if (net.spec.closes_block(i)) o.residual = t.z[i - 1];
    o.z = t.z[i + 1];
    if (t.a[i + 1] != t.z[i + 1]) o.a = t.a[i + 1];
    o.activation = net.spec.input_activation(i + 1);
    if (i + 1 < net.spec.n) o.scale = net.layer[i + 1].scale, o.shift = net.layer[i + 1].shift;
    forward_layer(p, t.a[i], rows, o);
    if (kept) store_row_blocks(rows, t.a[i + 1], p.out_width, nullptr, p.n_out, kept, t.spare);
  }
}

// g <- g * slope of the activation whose output is `a`.
template <class S>
void scale_by_slope(int64_t size, Activation act, const S* a, const S* z, S* g) {
  using V = typename Simd<S>::V;
  for (int64_t i = 0; i < size; i += kLanes<S>)
    store(g + i, load<V>(g + i) * activation_slope(act, load<V>(a + i), z ? load<V>(z + i) : V{}));
}

template <class S>
void multiply_into(int64_t size, const S* a, const S* b, S* out) {
  using V = typename Simd<S>::V;
  for (int64_t i = 0; i < size; i += kLanes<S>) store(out + i, load<V>(a + i) * load<V>(b + i));
}

// Rows past the end of the batch must not add to anything summed over rows.
template <class S>
void clear_past_end(const RowTile& rows, int64_t width, S* g) {
  const int64_t blocks = rows.blocks<S>(), used = rows.rows - (blocks - 1) * kRowBlock<S>;
  for (int64_t j = 0; j < width; ++j)
    for (int64_t l = used; l < kRowBlock<S>; ++l) g[((blocks - 1) * width + j) * kRowBlock<S> + l] = 0;
}

// Gradients of a tile on which forward_tile has run, from that of the last layer's z in t.g[0]. Weights and biases add
// to `sums`. Returns the gradient of a[0], or null where it is not needed.
template <class S>
S* backward_tile(const Net<S>& net, const RowTile& rows, const Tile<S>& t, const Sums<S>* sums, bool need_input,
                 bool first = false) {
  const NetSpec& spec = net.spec;
  const int64_t blocks = rows.blocks<S>();
  S *g = t.g[0], *const stream = t.g[2];
  const auto free_buffer = [&] { return g == t.g[0] ? t.g[1] : t.g[0]; };
  const int64_t last = rows.rows - (blocks - 1) * kRowBlock<S>;
  clear_past_end(rows, net.last().out_width, g);
  for (int i = spec.n - 1; i >= 0; --i) {
    const Packed<S>& p = net.layer[i];
    const auto store_term = [&](void* to, const S* from) {
      if (to) store_row_blocks(rows, from, p.out_width, p.out_rank, p.n_out, static_cast<S*>(to), t.spare);
    };
    if (p.layer->gate) {
      const int64_t size = blocks * p.out_width * kRowBlock<S>;
      multiply_into(size, g, t.ungated[i], t.add);
      store_term(p.layer->grad_gate, t.add);
      load_term(p, rows, p.layer->gate, p.layer->gate_stride, t.gate);
      S* gated = free_buffer();
      multiply_into(size, g, t.gate, gated);
      g = gated;
    }
    store_term(p.layer->grad_add, g);
    if (sums[i].weight) transpose_row_blocks(rows, t.a[i], p.in_width, p.n_in, t.transposed);
    weight_gradients(p, g, t.transposed, blocks, sums[i], first, last);
    if (i == 0 && !need_input) return nullptr;
    // The stream's gradient passes a block by; what the block adds comes on top at its first layer.
    const bool opens = spec.opens_block(i), adds = opens && !p.scale;
    S* to = adds || (spec.residual && i == spec.n - 1) ? stream : free_buffer();
    backward_layer(p, g, blocks, spec.input_activation(i), t.a[i], t.z[i], adds ? stream : nullptr, to, rows.half<S>());
    if (opens && p.scale) backward_scale(p, to, t.z[i], blocks, sums[i], stream);
    g = opens ? stream : to;
  }
  return g;
}

// ---- the whole batch ----

// Rows dealt out to threads in tiles.
template <class S>
struct Deal {
  int64_t rows, tile_rows, tiles;
  int parts;

  // widths: numbers that a row takes in a tile; work: multiply-adds a row.
  Deal(int64_t widths, int64_t rows_, int64_t work, int threads) : rows(rows_) {
    constexpr int64_t R = kRowBlock<S>;
    const int64_t all = (rows + R - 1) / R, useful = 1 + rows * work / kGrainWork;
    parts = int(threads < all ? threads : all);
    parts = int(parts < useful ? parts : useful);
    int64_t blocks = kTileBytes / (widths * R * int64_t(sizeof(S)) + 1);
    blocks = blocks > kMaxRowBlocks ? kMaxRowBlocks : blocks < 1 ? 1 : blocks;
    const int64_t share = (all + parts - 1) / parts;
    tile_rows = R * (blocks < share ? blocks : share);
    tiles = (rows + tile_rows - 1) / tile_rows;
  }
  Deal(const NetSpec& net, int64_t rows_, int64_t work, int threads) : Deal(net.widths(), rows_, work, threads) {}
  RowTile tile(int64_t i) const {
    const int64_t first = i * tile_rows;
    return {first, rows - first < tile_rows ? rows - first : tile_rows};
  }
  int64_t blocks() const { return tile_rows / kRowBlock<S>; }

  // Calls f(part, first tile, last tile + 1), each part on a thread: what is summed over rows is summed in one order.
  template <class F>
  void run(const F& f) const {
    parallel_for(parts, 1, parts, [&](int64_t part, int64_t end) {
      for (; part < end; ++part) f(int(part), tiles * part / parts, tiles * (part + 1) / parts);
    });
  }

  // Calls f(next) on each thread; next() gives tiles until there are none, so that a slow core gets fewer.
  template <class F>
  void share(const F& f) const {
    int64_t taken = 0;
    const auto next = [&](RowTile* rows) {
      const int64_t i = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
      if (i < tiles) *rows = tile(i);
      return i < tiles;
    };
    parallel_for(parts, 1, parts, [&](int64_t, int64_t) { f(next); });
  }
};

// Calls f(layer, panel) for panels(layer) panels of every layer, on several threads where that pays.
template <class S, class Count, class F>
void for_panels(const Net<S>& net, int threads, const Count& count, const F& f) {
  const int n = net.spec.n;
  int64_t panels = 0;
  for (int i = 0; i < n; ++i) panels += count(net.layer[i]);
  const int64_t grain = 1 + panels * kGrainWork / (8 * (net.spec.work() + 1));
  parallel_for(panels, grain, threads, [&](int64_t b, int64_t e) {
    int64_t at = 0;
    for (int i = 0; i < n; at += count(net.layer[i++]))
      for (int64_t j = b > at ? b - at : 0; j < count(net.layer[i]) && j < e - at; ++j) f(i, j);
  });
}

// Packs the weights of all layers, as far as they are read.
template <class S>
void pack(const Net<S>& net, bool backward, int threads) {
  for_panels(
      net, threads, [](const Packed<S>& p) { return p.forward ? p.panels() : 0; },
      [&](int i, int64_t j) { pack_panel(net.layer[i], j); });
  if (backward)
    for_panels(
        net, threads, [](const Packed<S>& p) { return p.panels_t(); },
        [&](int i, int64_t j) { pack_panel_t(net.layer[i], j); });
}

// Adds up what the threads summed for output j of a layer, in the user's order.
template <class S>
void finish_row(const Packed<S>& p, const Sums<S>* sums, int64_t stride, int parts, int64_t j) {
  using V = typename Simd<S>::V;
  const MaskedLayer& l = *p.layer;
  const int64_t to = p.out_at(j), seen = p.limit(j);
  if (l.grad_weight) {
    S* total = sums[0].weight + j * sums[0].columns;
    for (int t = 1; t < parts; ++t) {
      const S* more = sums[t * stride].weight + j * sums[t * stride].columns;
      int64_t k = 0;
      for (; k + kLanes<S> <= seen; k += kLanes<S>) store(total + k, load<V>(total + k) + load<V>(more + k));
      for (; k < seen; ++k) total[k] += more[k];
    }
    S* out = static_cast<S*>(l.grad_weight) + to * p.n_in;
    if (out == total) {
    } else if (p.in_rank) {
      for (int64_t k = 0; k < p.n_in; ++k) out[k] = p.in_rank[k] < seen ? total[p.in_rank[k]] : S(0);
    } else {
      memcpy(out, total, size_t(seen) * sizeof(S));
      for (int64_t k = seen; k < p.n_in; ++k) out[k] = 0;
    }
  }
  if (l.grad_bias) {
    double total = 0;
    for (int t = 0; t < parts; ++t)
      for (int i = 0; i < kRowBlock<S>; ++i) {
        const S* bias = sums[t * stride].bias + j * kRowBlock<S> + i;
        total += double(bias[0]) + double(bias[p.out_width * kRowBlock<S>]);
      }
    static_cast<S*>(l.grad_bias)[to] = S(total);
  }
}

// The same for what scales and shifts the layer's input.
template <class S>
void finish_scale(const Packed<S>& p, const Sums<S>* sums, int64_t stride, int parts) {
  S* const to[] = {static_cast<S*>(p.layer->scaled->grad_scale), static_cast<S*>(p.layer->scaled->grad_shift)};
  const int64_t width = p.in_width * kRowBlock<S>;
  for (int which = 0; which < 2; ++which)
    for (int64_t k = 0; to[which] && k < p.n_in; ++k) {
      double total = 0;
      for (int t = 0; t < parts; ++t)
        for (int64_t i = k * kRowBlock<S>; i < (k + 1) * kRowBlock<S>; ++i) {
          const S* at = sums[t * stride].scale + 2 * which * width + i;
          total += double(at[0]) + double(at[width]);
        }
      to[which][k] = S(total);
    }
}

// Everything of a call that is not one tile's: packed weights and, for backward, the threads' sums.
template <class S>
struct Call {
  Net<S> net;
  Sums<S>* sums = nullptr;  // [parts][n]
  bool in_place = false;    // the first thread adds up gradients of weights where the caller wants them, if it can

  explicit Call(const NetSpec& spec) : net{spec, {}} {}  // of several, laid out by their owner
  Call(const NetSpec& spec, bool backward, int64_t rows, int parts, int threads, bool in_place = false)
      : net{spec, {}}, in_place(in_place) {
    const bool few = !backward && rows <= kFewRows;
    Arena counted(nullptr);
    lay(counted, backward, few, parts, false);
    Arena shared(workspace(Scratch::shared, counted.used()));
    lay(shared, backward, few, parts, true);
    if (!few) pack(net, backward, threads);
  }

  // This part's sums, set to zero by the thread that will use them; not those of weights, where its first tile does.
  const Sums<S>* clear(int part, bool weights = true) const {
    Sums<S>* own = sums + part * net.spec.n;
    for (int i = 0; i < net.spec.n; ++i) {
      const int64_t width = net.layer[i].out_width;
      const bool tight = own[i].weight == net.layer[i].layer->grad_weight;
      const int64_t units = tight ? net.layer[i].n_out : width;
      if (own[i].weight && weights) memset(own[i].weight, 0, size_t(units * own[i].columns) * sizeof(S));
      if (own[i].bias) memset(own[i].bias, 0, size_t(2 * width * kRowBlock<S>) * sizeof(S));
      if (own[i].scale) memset(own[i].scale, 0, size_t(4 * net.layer[i].in_width * kRowBlock<S>) * sizeof(S));
    }
    return own;
  }

  void finish(int parts, int threads) const {
    for_panels(
        net, threads, [](const Packed<S>& p) { return p.n_out; },
        [&](int i, int64_t j) { finish_row(net.layer[i], sums + i, net.spec.n, parts, j); });
    for (int i = 0; i < net.spec.n; ++i)
      if (sums[i].scale) finish_scale(net.layer[i], sums + i, net.spec.n, parts);
  }

  // Sizes and tables, in the arena; without `fill` only counted.
  void lay(Arena& arena, bool backward, bool few, int parts, bool fill) {
    const int n = net.spec.n;
    for (int i = 0; i < n; ++i) net.layer[i] = lay_out<S>(net.spec.layers[i], arena, backward, few, fill);
    if (!backward) return;
    // What a layer gave is read back where it was kept.
    for (int i = 0; i + 1 < n; ++i) net.layer[i].forward = !net.spec.layers[i + 1].kept || !net.layer[i].plain();
    sums = arena.take<Sums<S>>(size_t(parts * n));
    for (int t = 0; t < parts; ++t)
      for (int i = 0; i < n; ++i) {
        const Packed<S>& p = net.layer[i];
        const bool tight = in_place && t == 0 && p.plain() && !p.layer->out_order;
        const int64_t columns = tight ? p.n_in : round_up(p.n_in, kRowBlock<S>);
        S* weight = static_cast<S*>(p.layer->grad_weight);
        if (weight && !tight) weight = arena.take<S>(size_t(p.out_width * columns));
        S* bias = p.layer->grad_bias ? arena.take<S>(size_t(2 * p.out_width * kRowBlock<S>)) : nullptr;
        const InputScale* const of = p.layer->scaled;
        const bool scales = of && (of->grad_scale || of->grad_shift);
        S* scale = scales ? arena.take<S>(size_t(4 * p.in_width * kRowBlock<S>)) : nullptr;
        if (fill) sums[t * n + i] = {weight, bias, columns, scale};
      }
  }
};

// Compiled in net_cpu.cpp, once for every op that runs a network.
#define FK_NET_FUNCTIONS(EXTERN, S)                                                                                    \
  EXTERN template void forward_layer(const Packed<S>&, const S*, const RowTile&, const Outlet<S>&);                    \
  EXTERN template void backward_layer(const Packed<S>&, const S*, int64_t, Activation, const S*, const S*, const S*,   \
                                      S*, bool);                                                                       \
  EXTERN template void weight_gradients(const Packed<S>&, const S*, const S*, int64_t, const Sums<S>&, bool, int64_t); \
  EXTERN template void forward_tile(const Net<S>&, const RowTile&, const Tile<S>&, int, bool);                         \
  EXTERN template S* backward_tile(const Net<S>&, const RowTile&, const Tile<S>&, const Sums<S>*, bool, bool);         \
  EXTERN template void finish_row(const Packed<S>&, const Sums<S>*, int64_t, int, int64_t);                            \
  EXTERN template FewUnit<S> few_unit(const Packed<S>&, int64_t, int64_t, int64_t, const S*);                          \
  EXTERN template void pack_panel(const Packed<S>&, int64_t);                                                          \
  EXTERN template void pack_panel_t(const Packed<S>&, int64_t);                                                        \
  EXTERN template void transpose_row_blocks(const RowTile&, const S*, int64_t, int64_t, S*);                           \
  EXTERN template void load_row_blocks(const RowTile&, const S*, int64_t, int64_t, const int32_t*, int64_t, S*);       \
  EXTERN template void store_row_blocks(const RowTile&, const S*, int64_t, const int32_t*, int64_t, S*, S*)
FK_NET_FUNCTIONS(extern, float);
FK_NET_FUNCTIONS(extern, double);

}  // namespace fk::FK_ISA
