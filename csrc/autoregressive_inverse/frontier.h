// A masked layer done unit by unit, as the inputs of its units become known. In degree order the units that can be
// computed are a prefix (forward) or a suffix (backward), so all there is to know is how far it reaches: the frontier.
//
// A panel of units goes through registers once, when its first unit is due, with all inputs known by then; its sums
// wait in `sums`. Each later unit adds what has come in between for itself, when it is due: half the products, and a
// tenth of the loads and stores, of carrying the whole panel along.
#pragma once
#include "../net/net_tile.h"

namespace fk::FK_ISA {

struct Frontier {
  int64_t at;  // forward: units before it are done; backward: units from it on
  int64_t
      seen;  // of the panel at the frontier: inputs before it, or outputs from it on, are in its sums; -1: not begun
};

// The sums of a whole panel, begun with `bias` where there is one. In memory between chains: with two sets of sums at
// hand the compiler keeps the wrong one in registers.
template <class S, class V = typename Simd<S>::V>
__attribute__((noinline)) void begin_panel(const S* w, const S* a, int64_t depth, bool half, const S* bias, S* sums) {
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  for (int i = 0; i < 2 * kPanel; ++i) store(sums + i * L, splat<V>(bias ? bias[i / 2] : S(0)));
  for (int64_t from = 0; from < depth; from += kChain) {
    const int64_t n = depth - from < kChain ? depth - from : kChain;
    V acc[kPanel][2];
    for (int i = 0; i < 2 * kPanel; ++i) acc[i / 2][i % 2] = from == 0 ? load<V>(sums + i * L) : V{};
    half ? multiply_half_panel(w + from * kPanel, a + from * R, n, acc)
         : multiply<kPanel, 1>(w + from * kPanel, a + from * R, R, n, acc);
    for (int i = 0; i < 2 * kPanel; ++i) {
      const V sum = acc[i / 2][i % 2];
      store(sums + i * L, from == 0 ? sum : load<V>(sums + i * L) + sum);
    }
  }
}

// acc[h] += sum over k of w[k * kPanel] * a[k * kRowBlock + h * L]: one unit of a panel, for N vectors of rows.
template <int N, class S, class V = typename Simd<S>::V>
FK_INLINE void multiply_unit(const S* w, const S* a, int64_t depth, V acc[N]) {
  for (int64_t from = 0; from < depth; from += kChain) {
    const int64_t end = from + kChain < depth ? from + kChain : depth;
    V part[N];
    for (int h = 0; h < N; ++h) part[h] = from == 0 ? acc[h] : V{};
    for (int64_t k = from; k < end; ++k)
      for (int h = 0; h < N; ++h) part[h] += splat<V>(w[k * kPanel]) * load<V>(a + k * kRowBlock<S> + h * kLanes<S>);
    for (int h = 0; h < N; ++h) acc[h] = from == 0 ? part[h] : acc[h] + part[h];
  }
}

// Computes the units whose inputs are all among the first `known`, but none from `cap` on, for every row block of a
// tile. `sums`: [row blocks][kPanel][kRowBlock].
template <class S>
void advance(const Packed<S>& p, Frontier& f, int64_t known, int64_t cap, const RowTile& rows, const S* in, S* sums,
             const Outlet<S>& o) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  const int64_t blocks = rows.blocks<S>();
  const bool half = rows.half<S>();
  const auto due = [&] { return f.at < p.n_out && f.at < cap && p.limit(f.at) <= known; };
  if (p.few_in) {
    constexpr int64_t kFresh = 4;  // inputs that a unit may take one by one
    int64_t mirrored = f.seen < 0 ? 0 : f.seen;
    if (known - mirrored > kFresh) {
      mirror(p, in, mirrored, known, rows.rows);
      mirrored = known;
    }
    for (; due(); ++f.at) {
      const FewUnit<S> unit = few_unit(p, f.at, rows.rows, mirrored, in);
      for (int h = 0; h < kFewLanes<S>; h += L) o.put(f.at * R + h, unit.lanes[h / L]);
    }
    mirror(p, in, mirrored, known, rows.rows);
    f.seen = known;
    return;
  }
  while (due()) {
    const int64_t panel = f.at / kPanel, first = panel * kPanel, from = f.at;
    const int64_t depth = known < p.depth[panel] ? known : p.depth[panel], seen = f.seen;
    int64_t end = from;
    while (end < first + kPanel && end < p.n_out && end < cap && p.limit(end) <= known) ++end;
    const S* const w = p.weights + p.offset[panel];
    for (int64_t s = 0; s < blocks; ++s) {
      S* const own = sums + s * kPanel * R;
      const S* const a = in + s * p.in_width * R;
      if (seen < 0) begin_panel<S>(w, a, depth, half, p.bias + first, own);
      for (int64_t j = from; j < end; ++j) {
        V sum[2] = {load<V>(own + (j - first) * R), load<V>(own + (j - first) * R + L)};
        if (seen >= 0) {
          const S* const rest = w + seen * kPanel + (j - first);
          const int64_t n = p.limit(j) - seen;
          half ? multiply_unit<1>(rest, a + seen * R, n, sum) : multiply_unit<2>(rest, a + seen * R, n, sum);
        }
        for (int h = 0; h < 2; ++h) o.put((s * p.out_width + j) * R + h * L, sum[h]);
      }
    }
    if (seen < 0) f.seen = depth;
    f.at = end;
    if (f.at == first + kPanel) f.seen = -1;
  }
}

// Where the gradient of a layer's inputs goes.
template <class S>
struct Inlet {
  Activation activation;  // that made the input
  const S *a, *z;         // its output and what it was given
  const S* residual;      // added last
  S* out;
  const S* gate = nullptr;  // of the layer that made the input, if it has one
  S* gated = nullptr;       // what that lets through
};

// Computes the gradients of the inputs seen only by outputs from `known` on, but none before `cap`, for every row
// block.
template <class S>
void retreat(const Packed<S>& p, Frontier& f, int64_t known, int64_t cap, int64_t blocks, const S* g, S* sums,
             const Inlet<S>& o) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  const auto due = [&] { return f.at > cap && (known == 0 || p.limit(known - 1) < f.at); };
  while (due()) {
    const int64_t panel = (f.at - 1) / kPanel, first = panel * kPanel, begin = p.begin[panel], from = f.at;
    const int64_t low = known > begin ? known : begin, seen = f.seen;
    int64_t end = from;
    while (end > first && end > cap && (known == 0 || p.limit(known - 1) < end)) --end;
    const S* const w = p.weights_t + p.offset_t[panel] + (low - begin) * kPanel;
    for (int64_t s = 0; s < blocks; ++s) {
      S* const own = sums + s * kPanel * R;
      const S* const g_low = g + (s * p.out_width + low) * R;
      if (seen < 0) begin_panel<S>(w, g_low, p.n_out - low, false, nullptr, own);
      for (int64_t j = end; j < from; ++j) {
        V sum[2] = {load<V>(own + (j - first) * R), load<V>(own + (j - first) * R + L)};
        if (seen >= 0) multiply_unit<2>(w + (j - first), g_low, seen - low, sum);
        for (int h = 0; h < 2; ++h) {
          const int64_t to = (s * p.in_width + j) * R + h * L;
          V v = sum[h];
          if (o.activation != Activation::identity)
            v *= activation_slope(o.activation, load<V>(o.a + to), o.z ? load<V>(o.z + to) : V{});
          if (o.residual) v += load<V>(o.residual + to);
          store(o.out + to, v);
          if (o.gate) store(o.gated + to, v * load<V>(o.gate + to));
        }
      }
    }
    if (seen < 0) f.seen = low;
    f.at = end;
    if (f.at == first) f.seen = -1;
  }
}

}  // namespace fk::FK_ISA
