// A masked layer done unit by unit, as the inputs of its units become known. In degree order the units that can be
// computed are a prefix (forward) or a suffix (backward), so all there is to know is how far it reaches: the front.
//
// Units still go through registers a panel at a time: a panel is begun with all inputs known by then, its sums wait in
// `sums`, and each time one of its units is due the inputs that came in between are added for all of them.
#pragma once
#include "../masked_linear/net_tile.h"

namespace fk::FK_ISA {

struct Front {
  int64_t at;  // forward: units before it are done; backward: units from it on
  int64_t
      seen;  // how far the sums of the panel at the front reach: inputs before it, or outputs from it on; -1: not begun
};

template <class S, class V = typename Simd<S>::V>
FK_INLINE void load_panel(const S* from, V acc[kRows][2]) {
  for (int i = 0; i < 2 * kRows; ++i) acc[i / 2][i % 2] = load<V>(from + i * kLanes<S>);
}
template <class S, class V = typename Simd<S>::V>
FK_INLINE void store_panel(S* to, V acc[kRows][2]) {
  for (int i = 0; i < 2 * kRows; ++i) store(to + i * kLanes<S>, acc[i / 2][i % 2]);
}

// Computes the units whose inputs are all among the first `known`, but none from `cap` on, for every strip of a tile.
// `sums`: [strips][kRows][kStrip].
template <class S>
void advance(const Packed<S>& p, Front& f, int64_t known, int64_t cap, const RowTile& rows, const S* in, S* sums,
             const Outlet<S>& o) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kStrip<S>;
  const int64_t strips = rows.strips<S>();
  const bool half = rows.half<S>();
  const auto due = [&] { return f.at < p.n_out && f.at < cap && p.limit(f.at) <= known; };
  while (due()) {
    const int64_t panel = f.at / kRows, first = panel * kRows;
    const int64_t depth = known < p.depth[panel] ? known : p.depth[panel];
    const int64_t seen = f.seen < 0 ? 0 : f.seen, from = f.at;
    int64_t end = from;
    while (end < first + kRows && end < p.n_out && end < cap && p.limit(end) <= known) ++end;
    for (int64_t s = 0; s < strips; ++s) {
      S* const own = sums + s * kRows * R;
      V acc[kRows][2];
      if (f.seen < 0)
        for (int m = 0; m < kRows; ++m) acc[m][0] = acc[m][1] = splat<V>(p.bias[first + m]);
      else
        load_panel(own, acc);
      const S *w = p.weights + p.offset[panel] + seen * kRows, *from_seen = in + (s * p.in_width + seen) * R;
      half ? multiply_half_panel(w, from_seen, depth - seen, acc) : multiply_panel(w, from_seen, depth - seen, acc);
      store_panel(own, acc);
      for (int64_t j = from; j < end; ++j)
        for (int h = 0; h < 2; ++h) {
          const int64_t to = (s * p.out_width + j) * R + h * L;
          V v = load<V>(own + (j - first) * R + h * L);
          if (o.add) v += load<V>(o.add + to);
          if (o.residual) v += load<V>(o.residual + to);
          if (o.z) store(o.z + to, v);
          if (o.a) store(o.a + to, activate(o.activation, v));
        }
    }
    f.seen = depth;
    f.at = end;
    if (f.at == first + kRows) f.seen = -1;
  }
}

// Where the gradient of a layer's inputs goes.
template <class S>
struct Inlet {
  Activation activation;  // that made the input
  const S *a, *z;         // its output and what it was given
  const S* residual;      // added last
  S* out;
};

// Computes the gradients of the inputs seen only by outputs from `known` on, but none before `cap`, for every strip.
template <class S>
void retreat(const Packed<S>& p, Front& f, int64_t known, int64_t cap, int64_t strips, const S* g, S* sums,
             const Inlet<S>& o) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kStrip<S>;
  const auto due = [&] { return f.at > cap && (known == 0 || p.limit(known - 1) < f.at); };
  while (due()) {
    const int64_t panel = (f.at - 1) / kRows, first = panel * kRows, begin = p.begin[panel];
    const int64_t low = known > begin ? known : begin;
    const int64_t seen = f.seen < 0 ? p.n_out : f.seen, from = f.at;
    int64_t end = from;
    while (end > first && end > cap && (known == 0 || p.limit(known - 1) < end)) --end;
    for (int64_t s = 0; s < strips; ++s) {
      S* const own = sums + s * kRows * R;
      V acc[kRows][2] = {};
      if (f.seen >= 0) load_panel(own, acc);
      multiply_panel(p.weights_t + p.offset_t[panel] + (low - begin) * kRows, g + (s * p.out_width + low) * R,
                     seen - low, acc);
      store_panel(own, acc);
      for (int64_t j = end; j < from; ++j)
        for (int h = 0; h < 2; ++h) {
          const int64_t to = (s * p.in_width + j) * R + h * L;
          V v = load<V>(own + (j - first) * R + h * L);
          if (o.activation != Activation::identity)
            v *= activation_slope(o.activation, load<V>(o.a + to), o.z ? load<V>(o.z + to) : V{});
          if (o.residual) v += load<V>(o.residual + to);
          store(o.out + to, v);
        }
    }
    f.seen = low;
    f.at = end;
    if (f.at == first) f.seen = -1;
  }
}

}  // namespace fk::FK_ISA
