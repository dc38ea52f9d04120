// SIMD loops of the rational splines: one lane per element (row, feature). A block of
// elements is transposed from memory's [element][param] into [param][lane], and everything from
// the raw logits to y, ladj or the gradients happens there, in L1. Blocks go in pairs: the way to
// the bin is wide (K independent exponentials), what follows is one long chain, so two at a time.
#include <type_traits>

#include "../common/by_type.h"
#include "../common/kernels.h"
#include "../common/parallel.h"
#include "../common/transpose.h"
#include "rqs.h"
#include "rqs_lanes.h"

namespace fk::FK_ISA {

FK_SPLINE_BLOCKS(, ConstsF);
FK_SPLINE_BLOCKS(, ConstsFClip);
FK_SPLINE_BLOCKS(, ConstsD);
FK_SPLINE_BLOCKS(, ConstsDClip);

namespace {

// Elements per group of rows whose ladj is reduced together; small enough for L1.
constexpr int kGroup = 512;
// Elements worth a thread of their own (about 10 us of work at K = 8).
constexpr int kGrain = 1024;

// ---- moving a block ----

// Lanes of 16-bit params, widened; unused by the other types.
template <class S, class TP>
struct Wide {
  S values[sizeof(TP) == sizeof(S) ? 1 : kLanes<S> * kMaxParams];

  FK_INLINE S* row(int l, int P, const TP* direct) {
    return sizeof(TP) == sizeof(S) ? reinterpret_cast<S*>(const_cast<TP*>(direct)) : values + l * P;
  }
};

// Out of line: one for all types and parametrisations.
template <class S>
__attribute__((noinline)) void load_rows(const ParamLayout& layout, const S* const* rows, Block<S>& b) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const int P = layout.params;
  if (P < Q) {  // one bin: too few params for a block
    for (int p = 0; p < P; ++p)
      for (int l = 0; l < L; ++l) b.raw[layout.row(p)][l] = rows[l][p];
  } else {
    for (int p = 0; p < P; p += Q) {
      const int s = p <= P - Q ? p : P - Q;  // the last block overlaps instead of reading past the end
      V v[Q];
      gather_block(rows, s, v);
      for (int j = 0; j < Q; ++j) b.raw[layout.row(s + j)] = v[j];
    }
  }
}

template <class S>
__attribute__((noinline)) void store_rows(const ParamLayout& layout, const Block<S>& b, S* const* rows) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const int P = layout.params;
  if (P < Q) {
    for (int p = 0; p < P; ++p)
      for (int l = 0; l < L; ++l) rows[l][p] = b.grad[layout.row(p)][l];
  } else {
    for (int p = 0; p < P; p += Q) {
      const int s = p <= P - Q ? p : P - Q;
      V v[Q];
      for (int j = 0; j < Q; ++j) v[j] = b.grad[layout.row(s + j)];
      scatter_block(rows, s, v);
    }
  }
}

template <class S, class TP>
FK_INLINE void load_block(const ParamLayout& layout, const TP* const* in, Block<S>& b) {
  Wide<S, TP> wide;
  const S* rows[kLanes<S>];
  for (int l = 0; l < kLanes<S>; ++l) {
    S* row = wide.row(l, layout.params, in[l]);
    if constexpr (sizeof(TP) != sizeof(S))
      for (int p = 0; p < layout.params; ++p) row[p] = to_float(in[l][p]);
    rows[l] = row;
  }
  load_rows<S>(layout, rows, b);
}

template <class S, class TP>
FK_INLINE void store_block(const ParamLayout& layout, const Block<S>& b, TP* const* out) {
  Wide<S, TP> wide;
  S* rows[kLanes<S>];
  for (int l = 0; l < kLanes<S>; ++l) rows[l] = wide.row(l, layout.params, out[l]);
  store_rows<S>(layout, b, rows);
  if constexpr (sizeof(TP) != sizeof(S))
    for (int l = 0; l < kLanes<S>; ++l)
      for (int p = 0; p < layout.params; ++p) from_float(rows[l][p], out[l][p]);
}

// ---- walking the tensors ----

template <class S, class T>
FK_INLINE Pair<typename Simd<S>::V> load_elements(const T* p) {
  return {load_lanes<S>(p), load_lanes<S>(p + kLanes<S>)};
}

template <class S, class T>
FK_INLINE void store_elements(T* p, Pair<typename Simd<S>::V> v, int n) {
  constexpr int L = kLanes<S>;
  if (sizeof(T) == sizeof(S) && n == 2 * L) {
    store(reinterpret_cast<S*>(p), v.a);
    store(reinterpret_cast<S*>(p) + L, v.b);
  } else {
    alignas(64) S wide[2 * L];
    store(wide, v.a);
    store(wide + L, v.b);
    for (int l = 0; l < n; ++l) from_float(wide[l], p[l]);
  }
}

// Calls body(first element, lanes in use, values of x, params pointers) over the rows [r0, r1),
// for 2L elements at a time; lanes past the end repeat the first.
template <class S, class TX, class TP, class F>
FK_INLINE void for_blocks(const RqsArgs& a, int64_t r0, int64_t r1, RowCursor& cur, const F& body) {
  constexpr int N = 2 * kLanes<S>;
  const TX* x = static_cast<const TX*>(a.x);
  const TP* params = static_cast<const TP*>(a.params);
  const int64_t D = a.features, end = r1 * D;
  const bool even = a.evenly_spaced();
  int64_t d = 0;
  for (int64_t e = r0 * D; e < end; e += N) {
    const int n = end - e < N ? int(end - e) : N;
    const TP* in[N];
    alignas(64) TX xs[N];
    const TX* from = xs;
    if (even) {
      if (n == N) from = x + e;
      for (int l = 0; l < N; ++l) in[l] = params + (e + (l < n ? l : 0)) * a.params_stride;
      if (n < N)
        for (int l = 0; l < N; ++l) xs[l] = x[e + (l < n ? l : 0)];
    } else {
      for (int l = 0; l < n; ++l) {
        xs[l] = x[cur.a + d * a.x_stride];
        in[l] = params + (cur.b + d * a.params_stride);
        if (++d == D) {
          d = 0;
          cur.next();
        }
      }
      for (int l = n; l < N; ++l) {
        xs[l] = xs[0];
        in[l] = in[0];
      }
    }
    body(e, n, load_elements<S>(from), in);
  }
}

// Rows are dealt out in groups of about kGroup elements, so that lanes stay full for any D.
struct Groups {
  int64_t rows, per_group, count, grain;
  Groups(const RqsArgs& a, int64_t grain_elements) {
    rows = a.rows.count();
    per_group = a.features < kGroup ? kGroup / a.features : 1;
    count = (rows + per_group - 1) / per_group;
    const int64_t elements = per_group * a.features;
    grain = (grain_elements + elements - 1) / elements;
  }
  int64_t first_row(int64_t group) const { return group * per_group < rows ? group * per_group : rows; }
};

// A spline without its type of constants, which is the same to all that walk over tensors.
template <class S>
struct Spline {
  using T = Pair<typename Simd<S>::V>;
  const ParamLayout* c;
  void (*eval)(const ParamLayout*, Block<S>*, bool inverse, T v, T* out, T* ladj);
  T (*grad)(const ParamLayout*, Block<S>*, bool inverse, T v, T g_out, T g_ladj);
  bool inverse;

  template <class C>
  Spline(const C& consts, bool inv) : c(&consts), inverse(inv) {
    eval = [](const ParamLayout* r, Block<S>* b, bool i, T v, T* out, T* ladj) {
      eval_blocks(*static_cast<const C*>(r), b, i, v, out, ladj);
    };
    grad = [](const ParamLayout* r, Block<S>* b, bool i, T v, T g_out, T g_ladj) {
      return grad_blocks(*static_cast<const C*>(r), b, i, v, g_out, g_ladj);
    };
  }
};

template <class S, class TX, class TP>
void fwd_groups(const Spline<S>& spline, const RqsArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  using T = typename Spline<S>::T;
  constexpr int L = kLanes<S>;
  const int64_t D = a.features;
  alignas(64) Block<S> blocks[2];
  alignas(64) S buffer[kGroup + 2 * kLanes<S>];  // ladj of the elements of a group
  RowCursor cursor(a.rows, groups.first_row(g0));
  for (int64_t g = g0; g < g1; ++g) {
    const int64_t r0 = groups.first_row(g), r1 = groups.first_row(g + 1);
    double long_row = 0;  // the sum of a row that does not fit the buffer
    int64_t filled = 0;
    for_blocks<S, TX, TP>(a, r0, r1, cursor, [&](int64_t e, int n, T v, const TP* const* in) {
      T out, ladj;
      load_block(*spline.c, in, blocks[0]);
      load_block(*spline.c, in + L, blocks[1]);
      spline.eval(spline.c, blocks, spline.inverse, v, &out, &ladj);
      store_elements<S>(static_cast<TX*>(a.y) + e, out, n);
      store_elements<S>(buffer + filled, ladj, 2 * L);
      filled += n;
      if (D > kGroup) {
        for (int l = 0; l < n; ++l) long_row += buffer[l];
        filled = 0;
      }
    });
    S* ladj = static_cast<S*>(a.ladj);
    if (D > kGroup) {
      ladj[r0] = S(long_row);
      continue;
    }
    for (int64_t r = r0; r < r1; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < D; ++i) sum += buffer[(r - r0) * D + i];
      ladj[r] = S(sum);
    }
  }
}

template <class S, class TX, class TP>
void bwd_groups(const Spline<S>& spline, const RqsArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  using T = typename Spline<S>::T;
  constexpr int L = kLanes<S>, N = 2 * L;
  const int64_t D = a.features;
  const TX* grad_y = static_cast<const TX*>(a.grad_y);
  const S* grad_ladj = static_cast<const S*>(a.grad_ladj);
  TP* grad_params = static_cast<TP*>(a.grad_params);
  alignas(64) Block<S> blocks[2];
  TP unused[kMaxParams];  // where lanes past the end write
  int64_t row = groups.first_row(g0), d = 0;
  RowCursor cursor(a.rows, row);
  for_blocks<S, TX, TP>(a, row, groups.first_row(g1), cursor, [&](int64_t e, int n, T v, const TP* const* in) {
    alignas(64) TX gys[N] = {};
    alignas(64) S gls[N] = {};
    TP* out[N];
    for (int l = 0; l < n; ++l) {
      if (grad_y) gys[l] = grad_y[e + l];
      if (grad_ladj) gls[l] = grad_ladj[row];
      out[l] = grad_params + (e + l) * spline.c->params;
      if (++d == D) {
        d = 0;
        ++row;
      }
    }
    for (int l = n; l < N; ++l) out[l] = unused;
    load_block(*spline.c, in, blocks[0]);
    load_block(*spline.c, in + L, blocks[1]);
    const T g_x = spline.grad(spline.c, blocks, spline.inverse, v, load_elements<S>(gys), load_elements<S>(gls));
    store_block(*spline.c, blocks[0], out);
    store_block(*spline.c, blocks[1], out + L);
    store_elements<S>(static_cast<TX*>(a.grad_x) + e, g_x, n);
  });
}

template <class S, class TX, class TP>
struct Run {
  static void fwd(const Spline<S>& spline, const RqsArgs& a, int threads) {
    const Groups groups(a, kGrain);
    parallel_for(groups.count, groups.grain, threads,
                 [&](int64_t g0, int64_t g1) { fwd_groups<S, TX, TP>(spline, a, groups, g0, g1); });
  }
  static void bwd(const Spline<S>& spline, const RqsArgs& a, int threads) {
    const Groups groups(a, kGrain / 2);
    parallel_for(groups.count, groups.grain, threads,
                 [&](int64_t g0, int64_t g1) { bwd_groups<S, TX, TP>(spline, a, groups, g0, g1); });
  }
};

// ---- types and settings to template arguments ----

template <class S, class TX, class TP, class F>
void by_setting(const RqsSpec& s, const F& f) {
  using R = Run<S, TX, TP>;
  if (s.clip_size != 0)
    f(R(), Spline<S>(Consts<S, true>(s), s.inverse));
  else
    f(R(), Spline<S>(Consts<S, false>(s), s.inverse));
}

// Params are of x's type, or of any beside a float32 x.
template <class F>
void by_types(const RqsSpec& spec, const RqsArgs& a, const F& f) {
  by_scalar(a.x_type, [&](auto s) {
    using S = decltype(s);
    by_storage<S>(a.x_type, [&](auto x) {
      using TX = decltype(x);
      by_storage<S>(a.params_type, [&](auto p) {
        using TP = decltype(p);
        if constexpr (std::is_same_v<TX, S> || std::is_same_v<TX, TP>) by_setting<S, TX, TP>(spec, f);
      });
    });
  });
}

void fwd_any(const RqsSpec& s, const RqsArgs& a, int threads) {
  by_types(s, a, [&](auto run, const auto& spline) { decltype(run)::fwd(spline, a, threads); });
}
void bwd_any(const RqsSpec& s, const RqsArgs& a, int threads) {
  by_types(s, a, [&](auto run, const auto& spline) { decltype(run)::bwd(spline, a, threads); });
}

}  // namespace

extern const Kernels<RqsSpec, RqsArgs> rqs_kernels;
const Kernels<RqsSpec, RqsArgs> rqs_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
