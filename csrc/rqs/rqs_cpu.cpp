// SIMD loops of the rational-quadratic spline: one lane per element (row, feature). A block of
// elements is transposed from memory's [element][param] into [param][lane], and everything from
// the raw logits to y, ladj or the gradients happens there, in L1.
#include "../common/simd.h"
#include "../common/transpose.h"
#include "rqs_kernels.h"
#include "rqs_math.h"

namespace fk::FK_ISA {
namespace {

constexpr int kMaxBins = 128;
// Elements per group of rows whose ladj is reduced together; small enough for L1.
constexpr int kGroup = 512;
// Elements worth a thread of their own (about 10 us of work at K = 8).
constexpr int kGrain = 1024;
// Bins from which the binary search beats selecting while the knots are accumulated: the
// search costs log2 K gathers, the selection 7 blends per knot that ride on the sums anyway.
constexpr int kSearchBins = 48;

// Row layout of a block in scratch: widths K | heights K | slopes at all K + 1 knots.
template <class S> struct Block {
  using V = typename Simd<S>::V;
  V raw[3 * kMaxBins + 1];
  V e[2 * kMaxBins];    // exp(logit - max)
  V cum[2 * kMaxBins];  // exclusive running sums of e (binary search only)
  V grad[3 * kMaxBins + 1];
};

// RqsSpec in the arithmetic type, plus what depends on the direction.
template <class S> struct Consts {
  int bins;
  S min_size[2], free_size[2], low[2], high[2];  // [0] widths / x, [1] heights / y
  S min_slope, logit_scale, clip_size, clip_slope, edge_logit;
  int params, row_of_slope, wrap;  // first scratch row of the slope params; wrap: last knot = first

  explicit Consts(const RqsSpec& s) {
    bins = s.bins;
    const double lo[2] = {s.left, s.bottom}, hi[2] = {s.right, s.top}, mn[2] = {s.min_width, s.min_height};
    for (int i = 0; i < 2; ++i) {
      low[i] = S(lo[i]);
      high[i] = S(hi[i]);
      min_size[i] = S((hi[i] - lo[i]) * mn[i]);
      free_size[i] = S((hi[i] - lo[i]) * (1 - mn[i] * s.bins));
    }
    min_slope = S(s.min_slope);
    logit_scale = S(s.logit_scale);
    clip_size = S(s.clip_size);
    clip_slope = S(s.clip_slope);
    edge_logit = S(s.edge_logit);
    params = s.params();
    row_of_slope = 2 * s.bins + (s.tails == Tails::linear ? 1 : 0);
    wrap = s.tails == Tails::circular;
  }
  int row(int p) const { return p < 2 * bins ? p : p - 2 * bins + row_of_slope; }
};

// ---- moving a block ----

template <class S, class TP> struct Lanes {
  static constexpr int L = kLanes<S>;
  const TP* in[L];
  TP* out[L];
};

template <class S, class TP> FK_INLINE void load_block(const Consts<S>& c, const TP* const* in, Block<S>& b) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const int P = c.params;
  const S* rows[L];
  S wide[sizeof(TP) == sizeof(S) ? 1 : L * (3 * kMaxBins + 1)];
  for (int l = 0; l < L; ++l) {
    if constexpr (sizeof(TP) == sizeof(S)) {
      rows[l] = reinterpret_cast<const S*>(in[l]);
    } else {
      for (int p = 0; p < P; ++p) wide[l * P + p] = to_float(in[l][p]);
      rows[l] = wide + l * P;
    }
  }
  if (P < Q) {  // one bin: too few params for a block
    for (int p = 0; p < P; ++p)
      for (int l = 0; l < L; ++l) b.raw[c.row(p)][l] = rows[l][p];
  } else {
    for (int p = 0; p < P; p += Q) {
      const int s = p <= P - Q ? p : P - Q;  // the last block overlaps instead of reading past the end
      V v[Q];
      gather_block(rows, s, v);
      for (int j = 0; j < Q; ++j) b.raw[c.row(s + j)] = v[j];
    }
  }
  if (c.wrap) {
    b.raw[3 * c.bins] = b.raw[2 * c.bins];
  } else if (c.row_of_slope != 2 * c.bins) {
    b.raw[2 * c.bins] = b.raw[3 * c.bins] = splat<V>(c.edge_logit);
  }
}

template <class S, class TP> FK_INLINE void store_block(const Consts<S>& c, const Block<S>& b, TP* const* out) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const int P = c.params;
  S* rows[L];
  S wide[sizeof(TP) == sizeof(S) ? 1 : L * (3 * kMaxBins + 1)];
  for (int l = 0; l < L; ++l) rows[l] = sizeof(TP) == sizeof(S) ? reinterpret_cast<S*>(out[l]) : wide + l * P;
  if (P < Q) {
    for (int p = 0; p < P; ++p)
      for (int l = 0; l < L; ++l) rows[l][p] = b.grad[c.row(p)][l];
  } else {
    for (int p = 0; p < P; p += Q) {
      const int s = p <= P - Q ? p : P - Q;
      V v[Q];
      for (int j = 0; j < Q; ++j) v[j] = b.grad[c.row(s + j)];
      scatter_block(rows, s, v);
    }
  }
  if constexpr (sizeof(TP) != sizeof(S)) {
    for (int l = 0; l < L; ++l)
      for (int p = 0; p < P; ++p) from_float(wide[l * P + p], out[l][p]);
  }
}

// ---- from logits to the bin ----

// e[k] = exp(u[k] - max u) of `bins` rows; returns their sum. Clipped logits replace u.
template <bool Clipped, class S, class V = typename Simd<S>::V>
FK_INLINE V exp_rows(const Consts<S>& c, V* u, V* e) {
  V top;
  for (int k = 0; k < c.bins; ++k) {
    u[k] *= c.logit_scale;
    if constexpr (Clipped) u[k] = soft_clip(u[k], c.clip_size);
    top = k == 0 ? u[0] : max_(top, u[k]);
  }
  V sum = {};
  for (int k = 0; k < c.bins; ++k) {
    e[k] = exp_(u[k] - top);
    sum += e[k];
  }
  return sum;
}

// Where the value lies: bin number (as a real), and for x and y the unnormalised mass before
// and in the bin; slope logits at its two knots.
template <class V> struct Found {
  V k, before[2], in[2], u0, u1;
};

// Selects while accumulating: no gather, cost proportional to K.
template <class S, class V = typename Simd<S>::V>
FK_INLINE Found<V> scan(const Consts<S>& c, const Block<S>& b, int dir, V v, const V* unit_size) {
  const int K = c.bins;
  const V *ea = b.e + dir * K, *eb = b.e + (1 - dir) * K, *u = b.raw + 2 * K;
  Found<V> f = {V{}, {V{}, V{}}, {ea[0], eb[0]}, u[0], u[1]};
  V sa = {}, sb = {};
  for (int k = 1; k < K; ++k) {
    sa += ea[k - 1];
    sb += eb[k - 1];
    const auto past = v >= sa * unit_size[dir] + (c.low[dir] + c.min_size[dir] * S(k));
    f.before[0] = select(past, sa, f.before[0]);
    f.before[1] = select(past, sb, f.before[1]);
    f.in[0] = select(past, ea[k], f.in[0]);
    f.in[1] = select(past, eb[k], f.in[1]);
    f.u0 = select(past, u[k], f.u0);
    f.u1 = select(past, u[k + 1], f.u1);
    f.k = select(past, splat<V>(S(k)), f.k);
  }
  if (dir) return {f.k, {f.before[1], f.before[0]}, {f.in[1], f.in[0]}, f.u0, f.u1};
  return f;
}

// Branch-free binary search over the running sums, one gather per halving.
template <class S, class V = typename Simd<S>::V>
FK_INLINE Found<V> search(const Consts<S>& c, Block<S>& b, int dir, V v, const V* unit_size) {
  using I = typename Simd<S>::I;
  using Int = typename Simd<S>::Int;
  constexpr int L = kLanes<S>;
  const int K = c.bins;
  for (int i = 0; i < 2; ++i) {
    V sum = {};
    for (int k = 0; k < K; ++k) {
      b.cum[i * K + k] = sum;
      sum += b.e[i * K + k];
    }
  }
  I lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  const auto at = [&](const V* rows, I k) {
    const S* base = reinterpret_cast<const S*>(rows);
    const I i = k * Int(L) + lane;
    V r;
    for (int l = 0; l < L; ++l) r[l] = base[i[l]];
    return r;
  };
  const V *cum = b.cum + dir * K, *u = b.raw + 2 * K;
  I lo = {};
  int step = 1;
  while (2 * step < K) step *= 2;
  for (; step > 0; step /= 2) {
    const I raw = lo + Int(step), k = raw < Int(K) ? raw : I{} + Int(K - 1);
    const V knot = at(cum, k) * unit_size[dir] + (c.low[dir] + c.min_size[dir] * __builtin_convertvector(k, V));
    lo = (v >= knot) & (raw < Int(K)) ? k : lo;
  }
  return {__builtin_convertvector(lo, V),
          {at(b.cum, lo), at(b.cum + K, lo)},
          {at(b.e, lo), at(b.e + K, lo)},
          at(u, lo),
          at(u, lo + 1)};
}

template <class V> struct Located {
  Bin<V> bin;
  Found<V> found;
  V inv_sum[2];
};

// Raw logits and a value inside the box -> its bin. dir 0 searches in x, 1 in y.
template <bool Clipped, class S, class V = typename Simd<S>::V>
FK_INLINE Located<V> locate(const Consts<S>& c, Block<S>& b, int dir, V v) {
  const int K = c.bins;
  Located<V> r;
  V unit_size[2];
  for (int i = 0; i < 2; ++i) {
    r.inv_sum[i] = 1 / exp_rows<Clipped>(c, b.raw + i * K, b.e + i * K);
    unit_size[i] = r.inv_sum[i] * c.free_size[i];
  }
  r.found = K < kSearchBins ? scan(c, b, dir, v, unit_size) : search(c, b, dir, v, unit_size);
  const Found<V>& f = r.found;
  const auto last = f.k == S(K - 1);
  V corner[2], size[2];
  for (int i = 0; i < 2; ++i) {
    size[i] = c.min_size[i] + unit_size[i] * f.in[i];
    corner[i] = c.low[i] + (f.k * c.min_size[i] + f.before[i] * unit_size[i]);
    corner[i] = select(last, c.high[i] - size[i], corner[i]);  // the outer knot is the box's corner, exactly
  }
  r.bin = {corner[0], size[0], corner[1], size[1], slope_value<Clipped>(f.u0, c.min_slope, c.clip_slope),
           slope_value<Clipped>(f.u1, c.min_slope, c.clip_slope)};
  return r;
}

// ---- one block of lanes ----

template <bool Clipped, class S, class V = typename Simd<S>::V>
__attribute__((noinline)) void eval_block(const Consts<S>& c, Block<S>& b, bool inverse, V v, V* out, V* ladj) {
  const auto inside = (v >= c.low[inverse]) & (v <= c.high[inverse]);
  const Located<V> at = locate<Clipped>(c, b, inverse, v);
  V y, l;
  if (inverse) {
    const Shape<V> p = shape_at(at.bin, theta_of_y(at.bin, v));
    y = at.bin.x0 + at.bin.w * p.theta;
    l = -log_(slope_of(p));
  } else {
    const Shape<V> p = shape_at(at.bin, theta_of_x(at.bin, v));
    y = at.bin.y0 + at.bin.h * (p.num / p.den);
    l = log_(slope_of(p));
  }
  *out = select(inside, y, v);
  *ladj = select(inside, l, V{});
}

// Leaves d loss / d params in b.grad and returns d loss / d v.
template <bool Clipped, class S, class V = typename Simd<S>::V>
__attribute__((noinline)) V grad_block(const Consts<S>& c, Block<S>& b, bool inverse, V v, V g_out, V g_ladj) {
  const int K = c.bins;
  const auto inside = (v >= c.low[inverse]) & (v <= c.high[inverse]);
  const Located<V> at = locate<Clipped>(c, b, inverse, v);
  const Found<V>& f = at.found;
  Bin<V> bin = at.bin;
  const Slope<V> d0 = slope_grad<Clipped>(f.u0, c.min_slope, c.clip_slope);
  const Slope<V> d1 = slope_grad<Clipped>(f.u1, c.min_slope, c.clip_slope);

  const Shape<V> p = shape_at(bin, inverse ? theta_of_y(bin, v) : theta_of_x(bin, v));
  V gy = g_out, gl = g_ladj, g_v;
  if (inverse) {  // implicit function theorem: see the derivation
    g_v = (g_out - g_ladj * ladj_slope(bin, p)) / slope_of(p);
    gy = -g_v;
    gl = -g_ladj;
  }
  const BinGrad<V> g = grad_of(bin, p, gy, gl);
  if (!inverse) g_v = g.x;

  const V zero = {};
  const V g_corner[2] = {select(inside, g.x0, zero), select(inside, g.y0, zero)};
  const V g_size[2] = {select(inside, g.w, zero), select(inside, g.h, zero)};
  for (int i = 0; i < 2; ++i) {
    // Softmax backward of a_j = corner for j < k, size for j = k, 0 after.
    const V scale = c.logit_scale * c.free_size[i] * at.inv_sum[i];
    const V mean = (g_corner[i] * f.before[i] + g_size[i] * f.in[i]) * at.inv_sum[i];
    const V a_before = (g_corner[i] - mean) * scale, a_in = (g_size[i] - mean) * scale, a_after = -mean * scale;
    const V *e = b.e + i * K, *u = b.raw + i * K;
    V* out = b.grad + i * K;
    for (int j = 0; j < K; ++j) {
      V a = select(f.k > S(j), a_before, a_after);
      a = select(f.k == S(j), a_in, a);
      out[j] = e[j] * a;
      if constexpr (Clipped) {
        const V q = 1 - c.clip_size * abs_(u[j]);
        out[j] *= q * q;
      }
    }
  }
  const V g0 = select(inside, g.d0 * d0.grad, zero), g1 = select(inside, g.d1 * d1.grad, zero);
  V* out = b.grad + 2 * K;
  out[0] = select(f.k == 0, g0, zero);
  for (int j = 1; j <= K; ++j) out[j] = select(f.k == S(j), g0, select(f.k == S(j - 1), g1, zero));
  if (c.wrap) out[0] += out[K];
  return select(inside, g_v, g_out);
}

// ---- walking the tensors ----

template <class S, class T> FK_INLINE typename Simd<S>::V load_lanes(const T* p) {
  typename Simd<S>::V v;
  if constexpr (sizeof(T) == sizeof(S)) {
    v = load<typename Simd<S>::V>(reinterpret_cast<const S*>(p));
  } else {
    S wide[kLanes<S>];
    for (int l = 0; l < kLanes<S>; ++l) wide[l] = to_float(p[l]);
    v = load<typename Simd<S>::V>(wide);
  }
  return v;
}

template <class S, class T> FK_INLINE void store_lanes(T* p, typename Simd<S>::V v, int n) {
  if (sizeof(T) == sizeof(S) && n == kLanes<S>) {
    store(reinterpret_cast<S*>(p), v);
  } else {
    for (int l = 0; l < n; ++l) from_float(S(v[l]), p[l]);
  }
}

// Calls body(first element, lanes in use, values of x, params pointers) over the rows [r0, r1).
template <class S, class TX, class TP, class F>
FK_INLINE void for_blocks(const RqsArgs& a, int64_t r0, int64_t r1, RowCursor& cur, const F& body) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  const TX* x = static_cast<const TX*>(a.x);
  const TP* params = static_cast<const TP*>(a.params);
  const int64_t D = a.features, end = r1 * D;
  int64_t d = 0;
  for (int64_t e = r0 * D; e < end; e += L) {
    const int n = end - e < L ? int(end - e) : L;
    const TP* in[L];
    TX xs[L];
    for (int l = 0; l < n; ++l) {
      xs[l] = x[cur.a + d * a.x_stride];
      in[l] = params + (cur.b + d * a.params_stride);
      if (++d == D) {
        d = 0;
        cur.next();
      }
    }
    for (int l = n; l < L; ++l) {
      xs[l] = xs[0];
      in[l] = in[0];
    }
    body(e, n, V(load_lanes<S>(xs)), in);
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

template <class S, class TX, class TP, bool Clipped>
void fwd_groups(const Consts<S>& c, bool inverse, const RqsArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  using V = typename Simd<S>::V;
  constexpr int kRoom = kGroup + kLanes<S>;
  const int64_t D = a.features;
  alignas(64) Block<S> block;
  alignas(64) S buffer[kRoom];  // ladj of the elements of a group
  RowCursor cursor(a.rows, groups.first_row(g0));
  for (int64_t g = g0; g < g1; ++g) {
    const int64_t r0 = groups.first_row(g), r1 = groups.first_row(g + 1);
    double long_row = 0;  // the sum of a row that does not fit the buffer
    int64_t filled = 0;
    for_blocks<S, TX, TP>(a, r0, r1, cursor, [&](int64_t e, int n, V v, const TP* const* in) {
      V out, ladj;
      load_block(c, in, block);
      eval_block<Clipped>(c, block, inverse, v, &out, &ladj);
      store_lanes<S>(static_cast<TX*>(a.y) + e, out, n);
      store(buffer + filled, ladj);
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

template <class S, class TX, class TP, bool Clipped>
void bwd_groups(const Consts<S>& c, bool inverse, const RqsArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  const int64_t D = a.features;
  const TX* grad_y = static_cast<const TX*>(a.grad_y);
  const S* grad_ladj = static_cast<const S*>(a.grad_ladj);
  alignas(64) Block<S> block;
  TP unused[3 * kMaxBins + 1];  // where lanes past the end write
  int64_t row = groups.first_row(g0), d = 0;
  RowCursor cursor(a.rows, row);
  for_blocks<S, TX, TP>(a, row, groups.first_row(g1), cursor, [&](int64_t e, int n, V v, const TP* const* in) {
    TX gys[L] = {};
    S gls[L] = {};
    TP* out[L];
    for (int l = 0; l < n; ++l) {
      if (grad_y) gys[l] = grad_y[e + l];
      if (grad_ladj) gls[l] = grad_ladj[row];
      out[l] = static_cast<TP*>(a.grad_params) + (e + l) * c.params;
      if (++d == D) {
        d = 0;
        ++row;
      }
    }
    for (int l = n; l < L; ++l) out[l] = unused;
    load_block(c, in, block);
    const V g_x = grad_block<Clipped>(c, block, inverse, v, V(load_lanes<S>(gys)), load<V>(gls));
    store_block(c, block, out);
    store_lanes<S>(static_cast<TX*>(a.grad_x) + e, g_x, n);
  });
}

template <class S, class TX, class TP, bool Clipped> void fwd(const RqsSpec& s, const RqsArgs& a, int threads) {
  const Consts<S> c(s);
  const Groups groups(a, kGrain);
  parallel_for(groups.count, groups.grain, threads, [&](int64_t g0, int64_t g1) {
    fwd_groups<S, TX, TP, Clipped>(c, s.inverse, a, groups, g0, g1);
  });
}

template <class S, class TX, class TP, bool Clipped> void bwd(const RqsSpec& s, const RqsArgs& a, int threads) {
  const Consts<S> c(s);
  const Groups groups(a, kGrain / 2);
  parallel_for(groups.count, groups.grain, threads, [&](int64_t g0, int64_t g1) {
    bwd_groups<S, TX, TP, Clipped>(c, s.inverse, a, groups, g0, g1);
  });
}

// ---- types to template arguments ----

template <class S, class TX, class TP> struct Call {
  static void fwd(const RqsSpec& s, const RqsArgs& a, int threads) {
    s.clip_size != 0 ? FK_ISA::fwd<S, TX, TP, true>(s, a, threads) : FK_ISA::fwd<S, TX, TP, false>(s, a, threads);
  }
  static void bwd(const RqsSpec& s, const RqsArgs& a, int threads) {
    s.clip_size != 0 ? FK_ISA::bwd<S, TX, TP, true>(s, a, threads) : FK_ISA::bwd<S, TX, TP, false>(s, a, threads);
  }
};

template <class F> void by_type(const RqsArgs& a, const F& f) {
  const auto is = [&](DType x, DType p) { return a.x_type == x && a.params_type == p; };
  if (is(DType::f32, DType::f32)) f(Call<float, float, float>());
  if (is(DType::f64, DType::f64)) f(Call<double, double, double>());
  if (is(DType::bf16, DType::bf16)) f(Call<float, bf16, bf16>());
  if (is(DType::f16, DType::f16)) f(Call<float, f16, f16>());
  if (is(DType::f32, DType::bf16)) f(Call<float, float, bf16>());
  if (is(DType::f32, DType::f16)) f(Call<float, float, f16>());
}

void fwd_any(const RqsSpec& s, const RqsArgs& a, int threads) {
  by_type(a, [&](auto call) { decltype(call)::fwd(s, a, threads); });
}
void bwd_any(const RqsSpec& s, const RqsArgs& a, int threads) {
  by_type(a, [&](auto call) { decltype(call)::bwd(s, a, threads); });
}

}  // namespace

extern const RqsKernels rqs_kernels;
const RqsKernels rqs_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
