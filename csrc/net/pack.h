// Weights as the product wants them: units sorted by degree, in panels of kPanel, and only the part the mask keeps.
#pragma once
#include "../common/arena.h"
#include "net.h"
#include "row_blocks.h"

namespace fk::FK_ISA {

// Rows of a call up to which the weights are used where they lie: see few_rows.h.
constexpr int kFewRows = 4;

// A layer, ready for a call. Everything below is in degree order; pad units have weight 0.
template <class S>
struct Packed {
  const MaskedLayer* layer;
  int64_t n_in, n_out, in_width, out_width;  // widths: padded to whole panels
  int32_t *in_rank, *out_rank;               // user's index -> place in order; null: the same
  int64_t *depth, *offset;                   // of each panel of outputs: inputs it sees, where its weights begin
  S* weights;                                // [panel][depth][kPanel outputs]
  S* bias;                                   // [out_width]
  int64_t *begin, *offset_t;                 // of each panel of inputs: the first output that sees it
  S* weights_t;                              // [panel][n_out - begin][kPanel inputs]
  bool forward;                              // whether what the layer gives is computed in this call
  S *scale, *shift;                          // [in_width] of what enters, before its activation; or null
  S* few_in;                                 // not null: nothing is packed; [kFewRows][few_stride] the layer's input,
  int64_t few_stride;                        // in the order of the weights' columns
  typename Simd<S>::Int* few_rank;           // [few_stride] in_rank, or null, for whole vectors

  int64_t panels() const { return out_width / kPanel; }
  int64_t panels_t() const { return in_width / kPanel; }
  int64_t limit(int64_t j) const { return layer->limit ? layer->limit[j] : n_in; }
  int64_t out_at(int64_t j) const { return layer->out_order ? layer->out_order[j] : j; }
  // The weights of unit j, in the order of the caller's columns.
  const S* row(int64_t j) const { return static_cast<const S*>(layer->weight) + out_at(j) * layer->weight_stride; }
  int64_t in_at(int64_t k) const { return layer->in_order ? layer->in_order[k] : k; }
  // Whether every unit sees all inputs, in the order of the caller's columns.
  bool plain() const { return !layer->in_order && !layer->limit; }
};

inline int32_t* take_rank(Arena& arena, const int32_t* order, int64_t n, bool fill) {
  if (!order) return nullptr;
  int32_t* rank = arena.take<int32_t>(size_t(n));
  if (fill)
    for (int64_t i = 0; i < n; ++i) rank[order[i]] = int32_t(i);
  return rank;
}

// Sizes and index tables of a layer. Run twice: once on an empty arena, to count, once to fill.
template <class S>
Packed<S> lay_out(const MaskedLayer& l, Arena& arena, bool backward, bool few, bool fill) {
  Packed<S> p = {};
  p.layer = &l;
  p.n_in = l.n_in;
  p.n_out = l.n_out;
  p.forward = true;
  p.in_width = round_up(l.n_in, kPanel);
  p.out_width = round_up(l.n_out, kPanel);
  if (l.scaled) {
    const auto padded = [&](const void* from) {
      S* to = arena.take<S>(size_t(p.in_width));
      if (fill) {
        memcpy(to, from, size_t(l.n_in) * sizeof(S));
        for (int64_t k = l.n_in; k < p.in_width; ++k) to[k] = 0;
      }
      return to;
    };
    p.scale = padded(l.scaled->scale), p.shift = padded(l.scaled->shift);
  }
  p.in_rank = take_rank(arena, l.in_order, l.n_in, fill);
  p.out_rank = take_rank(arena, l.out_order, l.n_out, fill);
  if (few) {
    using Int = typename Simd<S>::Int;
    p.few_stride = round_up(p.n_in, kLanes<S>);
    p.few_in = arena.take<S>(size_t(kFewRows * p.few_stride));
    p.few_rank = l.in_order ? arena.take<Int>(size_t(p.few_stride)) : nullptr;
    if (fill && p.few_rank)
      for (int64_t k = 0; k < p.n_in; ++k) p.few_rank[k] = Int(p.in_rank[k]);
    return p;
  }
  p.depth = arena.take<int64_t>(size_t(p.panels()));
  p.offset = arena.take<int64_t>(size_t(p.panels() + 1));
  int64_t used = 0;
  for (int64_t i = 0; i < p.panels(); ++i) {
    const int64_t last = (i + 1) * kPanel < p.n_out ? (i + 1) * kPanel - 1 : p.n_out - 1;
    const int64_t depth = p.limit(last);
    if (fill) {
      p.depth[i] = depth;
      p.offset[i] = used;
    }
    used += depth * kPanel;
  }
  if (fill) p.offset[p.panels()] = used;
  p.weights = arena.take<S>(size_t(used) + kQuad<S>);  // pack_panel_t's last block reads past the last row
  p.bias = arena.take<S>(size_t(p.out_width));
  if (!backward) return p;
  p.begin = arena.take<int64_t>(size_t(p.panels_t()));
  p.offset_t = arena.take<int64_t>(size_t(p.panels_t() + 1));
  int64_t used_t = 0, first = 0;
  for (int64_t i = 0; i < p.panels_t(); ++i) {
    while (first < p.n_out && p.limit(first) <= i * kPanel) ++first;
    if (fill) {
      p.begin[i] = first;
      p.offset_t[i] = used_t;
    }
    used_t += (p.n_out - first) * kPanel;
  }
  if (fill) p.offset_t[p.panels_t()] = used_t;
  p.weights_t = arena.take<S>(size_t(used_t));
  return p;
}

// Stores the first lanes of v, as many as there are rows left in a panel from row `from` on.
template <class S>
FK_INLINE void store_rows(S* p, typename Simd<S>::V v, int from) {
  constexpr int L = kLanes<S>, kLast = kPanel % L;
  if (kLast == 0 || from + L <= kPanel) {
    store(p + from, v);
    return;
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    _mm512_mask_storeu_ps(p + from, (1 << kLast) - 1, (__m512)v);
  else
    _mm512_mask_storeu_pd(p + from, (1 << kLast) - 1, (__m512d)v);
#else
  memcpy(p + from, &v, kLast * sizeof(S));
#endif
}

// Weights of one panel of outputs.
template <class S>
void pack_panel(const Packed<S>& p, int64_t panel) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const MaskedLayer& l = *p.layer;
  const S* rows[kPanel + L];
  for (int m = 0; m < kPanel + L; ++m) {
    const int64_t j = panel * kPanel + (m < kPanel ? m : 0);
    rows[m] = p.row(j < p.n_out ? j : p.n_out - 1);
  }
  S* out = p.weights + p.offset[panel];
  const int64_t depth = p.depth[panel];
  const auto place = [&](int64_t k) -> S* {
    const int64_t to = p.in_rank ? p.in_rank[k] : k;
    return to < depth ? out + to * kPanel : nullptr;
  };
  int64_t k = 0;
  const int64_t n = p.in_rank ? p.n_in : depth;
  for (; k + Q <= n; k += Q)
    for (int m = 0; m < kPanel; m += L) {
      V v[Q];
      gather_block(rows + m, k, v);
      for (int i = 0; i < Q; ++i)
        if (S* to = place(k + i)) store_rows(to, v[i], m);
    }
  for (; k < n; ++k)
    if (S* to = place(k))
      for (int m = 0; m < kPanel; ++m) to[m] = rows[m][k];
  for (int m = 0; m < kPanel; ++m) {
    const int64_t j = panel * kPanel + m;
    for (int64_t i = j < p.n_out ? p.limit(j) : 0; i < depth; ++i) out[i * kPanel + m] = 0;
    p.bias[j] = j < p.n_out && l.bias ? static_cast<const S*>(l.bias)[p.out_at(j)] : 0;
  }
}

// Weights of one panel of inputs, for the gradient of the input: pieces of the rows where they lie, or else the packed
// panels of outputs, transposed.
template <class S>
void pack_panel_t(const Packed<S>& p, int64_t panel) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  alignas(64) static const S zeros[kPanel + Q] = {};
  const int64_t first = panel * kPanel, begin = p.begin[panel];
  S* out = p.weights_t + p.offset_t[panel];
  if (p.plain()) {
    const int64_t n = p.n_in - first < kPanel ? p.n_in - first : kPanel;
    for (int64_t j = 0; j < p.n_out; ++j, out += kPanel) {
      const S* const from = p.row(j) + first;
      if (n == kPanel) {
        memcpy(out, from, kPanel * sizeof(S));
        continue;
      }
      for (int m = 0; m < kPanel; ++m) out[m] = m < n ? from[m] : S(0);
    }
    return;
  }
  for (int64_t from = begin / kPanel; from < p.panels(); ++from) {
    const S* rows[kPanel + L];
    for (int m = 0; m < kPanel + L; ++m) {
      const int64_t k = first + m;
      rows[m] = m < kPanel && k < p.depth[from] ? p.weights + p.offset[from] + k * kPanel : zeros;
    }
    for (int j = 0; j < kPanel; j += Q)
      for (int m = 0; m < kPanel; m += L) {
        V v[Q];
        gather_block(rows + m, j, v);
        for (int i = 0; i < Q; ++i) {
          const int64_t to = from * kPanel + j + i;
          if (j + i < kPanel && to >= begin && to < p.n_out) store_rows(out + (to - begin) * kPanel, v[i], m);
        }
      }
  }
}

}  // namespace fk::FK_ISA
