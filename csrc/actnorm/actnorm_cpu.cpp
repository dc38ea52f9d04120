// SIMD loops of actnorm. One pass over memory in every direction; sums over pixels go in short chains of floats, and
// from there into doubles.
//
// Channels-first images are planes, each with one scale and shift. Rows of features (and channels_last) have a vector
// of them; a few neighbouring rows are taken as one, so that no vector ends where a row does.
#include "../common/arena.h"
#include "../common/by_type.h"
#include "../common/channel_ladj.h"
#include "../common/kernels.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "actnorm.h"

namespace fk::FK_ISA {
namespace {

// Bytes worth a thread of their own.
constexpr int64_t kGrainBytes = 64 << 10;
// Terms of a chain of float sums.
constexpr int64_t kChain = 64;

template <class S, class T>
FK_INLINE void store_any(T* p, typename Simd<S>::V v) {
  if constexpr (sizeof(T) == sizeof(S)) {
    store(reinterpret_cast<S*>(p), v);
  } else {
    S wide[kLanes<S>];
    store(wide, v);
    for (int l = 0; l < kLanes<S>; ++l) from_float(wide[l], p[l]);
  }
}
// The first n lanes; the others are 0.
template <class S, class T>
FK_INLINE typename Simd<S>::V load_some(const T* p, int64_t n) {
  S wide[kLanes<S>] = {};
  for (int64_t l = 0; l < n; ++l) wide[l] = to_float(p[l]);
  return load<typename Simd<S>::V>(wide);
}
template <class S, class T>
FK_INLINE void store_some(T* p, typename Simd<S>::V v, int64_t n) {
  S wide[kLanes<S>];
  store(wide, v);
  for (int64_t l = 0; l < n; ++l) from_float(wide[l], p[l]);
}

// y = (x - before) scale + after, channel by channel; `repeats` copies side by side.
template <class S>
struct Maps {
  S *scale, *before, *after;

  Maps(const ActNormArgs& a, int64_t repeats, Arena& arena) {
    using V = typename Simd<S>::V;
    const int64_t C = a.channels, room = (C * repeats + kLanes<S> - 1) / kLanes<S> * kLanes<S>;
    scale = arena.take<S>(size_t(room));
    before = arena.take<S>(size_t(room));
    after = arena.take<S>(size_t(room));
    if (arena.counts()) return;
    const S *log_scale = static_cast<const S*>(a.log_scale), *shift = static_cast<const S*>(a.shift);
    for (int64_t i = 0; i < room; ++i) {
      scale[i] = a.inverse ? -log_scale[i % C] : log_scale[i % C];
      before[i] = a.inverse ? shift[i % C] : S(0);
      after[i] = a.inverse ? S(0) : shift[i % C];
    }
    for (int64_t i = 0; i < room; i += kLanes<S>) store(scale + i, exp_(load<V>(scale + i)));
  }
};

// How a call's pixels are walked.
struct Walk {
  bool rows;
  int64_t repeats;  // rows taken as one
  int64_t count;    // planes, or joined rows
  int64_t width;    // of a plane, or a joined row
  int64_t rest;     // rows past the last joined one
  int parts;

  template <class S, class T>
  static Walk of(const ActNormArgs& a, int threads) {
    Walk w = {a.by_rows(), 1, a.images * a.channels, a.pixels, 0, 1};
    if (w.rows) {
      const int64_t C = a.channels, all = a.images * a.pixels;
      const auto dense = [&](const Channels& t) { return !t.data || t.pixel == C; };
      if (dense(a.x) && dense(a.y) && dense(a.grad_x) && dense(a.grad_y) && C < 32 * kLanes<S>) {
        w.repeats = kLanes<S>;
        while (w.repeats > 1 && (w.repeats / 2 * C) % kLanes<S> == 0) w.repeats /= 2;
        while (w.repeats * C < 4 * kLanes<S>) w.repeats *= 2;
      }
      w.count = all / w.repeats;
      w.rest = all % w.repeats;
      w.width = w.repeats * C;
    }
    const int64_t useful = w.count * w.width * int64_t(sizeof(T)) / kGrainBytes;
    w.parts = int(useful < 1 ? 1 : useful < threads ? useful : threads);
    return w;
  }
  int64_t first(int part) const { return count * part / parts; }

  // Calls f(part) for every part, each on a thread.
  template <class F>
  void run(const F& f) const {
    parallel_for(parts, 1, parts, [&](int64_t part, int64_t end) {
      for (; part < end; ++part) f(int(part));
    });
  }
};

template <class T>
FK_INLINE T* plane_of(const Channels& t, int64_t image, int64_t channel) {
  return static_cast<T*>(t.data) + image * t.image + channel * t.channel;
}
template <class T>
FK_INLINE T* row_of(const Channels& t, int64_t row) {
  return static_cast<T*>(t.data) + row * t.pixel;
}

// Calls f(i, n) for the vectors of a range, n lanes each.
template <class S, class F>
FK_INLINE void for_vectors(int64_t width, const F& f) {
  constexpr int L = kLanes<S>;
  int64_t i = 0;
  for (; i + L <= width; i += L) f(i, L);
  if (i < width) f(i, int(width - i));
}

// ---- forward and inverse ----

template <class S, class T>
FK_INLINE void map_vector(const T* x, T* y, int n, typename Simd<S>::V before, typename Simd<S>::V scale,
                          typename Simd<S>::V after) {
  if (n == kLanes<S>)
    store_any<S>(y, (load_lanes<S>(x) - before) * scale + after);
  else
    store_some<S>(y, (load_some<S>(x, n) - before) * scale + after, n);
}

template <class S, class T>
void fwd(const ActNormArgs& a, int threads) {
  using V = typename Simd<S>::V;
  const Walk w = Walk::of<S, T>(a, threads);
  const Maps<S> m = in_scratch(Scratch::shared, [&](Arena& arena) { return Maps<S>(a, w.repeats, arena); });
  const auto row = [&](int64_t r, int64_t width) {
    const T* x = row_of<T>(a.x, r);
    T* y = row_of<T>(a.y, r);
    for_vectors<S>(width, [&](int64_t i, int n) {
      map_vector<S>(x + i, y + i, n, load<V>(m.before + i), load<V>(m.scale + i), load<V>(m.after + i));
    });
  };
  w.run([&](int part) {
    for (int64_t i = w.first(part); i < w.first(part + 1); ++i) {
      if (w.rows) {
        row(i * w.repeats, w.width);
        continue;
      }
      const int64_t image = i / a.channels, c = i % a.channels;
      const T* x = plane_of<T>(a.x, image, c);
      T* y = plane_of<T>(a.y, image, c);
      const V before = splat<V>(m.before[c]), scale = splat<V>(m.scale[c]), after = splat<V>(m.after[c]);
      for_vectors<S>(w.width, [&](int64_t j, int n) { map_vector<S>(x + j, y + j, n, before, scale, after); });
    }
  });
  for (int64_t r = w.count * w.repeats; r < w.count * w.repeats + w.rest; ++r) row(r, a.channels);
  fill_ladj<S>(a, [&](int64_t c) { return static_cast<const S*>(a.log_scale)[c]; });
}

// ---- backward ----

// Sums over pixels of g and of g (x - before), lane by lane.
template <class S>
struct Pending {
  using V = typename Simd<S>::V;
  V g = {}, gx = {};

  FK_INLINE void flush(double* to_g, double* to_gx) const {
    for (int l = 0; l < kLanes<S>; ++l) {
      to_g[l] += double(g[l]);
      to_gx[l] += double(gx[l]);
    }
  }
};

template <class S, class T>
FK_INLINE void grad_vector(const T* x, const T* g, T* grad_x, int n, typename Simd<S>::V before,
                           typename Simd<S>::V scale, Pending<S>& sums) {
  using V = typename Simd<S>::V;
  const bool all = n == kLanes<S>;
  const V gv = all ? load_lanes<S>(g) : load_some<S>(g, n), xv = all ? load_lanes<S>(x) : load_some<S>(x, n);
  sums.g += gv;
  sums.gx += gv * (xv - before);
  if (!grad_x) return;
  if (all)
    store_any<S>(grad_x, gv * scale);
  else
    store_some<S>(grad_x, gv * scale, n);
}

template <class S, class T>
void bwd(const ActNormArgs& a, int threads) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  const int64_t C = a.channels;
  const Walk w = Walk::of<S, T>(a, threads);
  // Where sums go: of a plane one per lane, of joined rows one per column.
  const int64_t slots = w.rows ? (w.width + L - 1) / L * L : C * L;
  struct Shared {
    Maps<S> m;
    double* sums;  // [parts][g, g x][slots]
    Shared(const ActNormArgs& a, const Walk& w, int64_t slots, Arena& arena)
        : m(a, w.repeats, arena), sums(arena.take<double>(size_t(2 * w.parts * slots))) {}
  };
  const Shared shared = in_scratch(Scratch::shared, [&](Arena& arena) { return Shared(a, w, slots, arena); });
  const Maps<S>& m = shared.m;
  memset(shared.sums, 0, size_t(2 * w.parts * slots) * sizeof(double));
  const bool wanted = a.grad_x.data;

  // Joined rows [r, end) of `width`, `step` rows each, a few columns at a time: their sums stay in registers.
  const auto rows = [&](double* sums, int64_t r, int64_t end, int64_t width, int64_t step) {
    constexpr int kColumns = 4;
    for (; r < end; r += kChain) {
      const int64_t n = end - r < kChain ? end - r : kChain;
      for (int64_t i = 0; i < width; i += kColumns * L) {
        Pending<S> pending[kColumns];
        const int64_t columns = width - i < kColumns * L ? width - i : kColumns * L;
        for (int64_t k = 0; k < n; ++k) {
          const int64_t row = (r + k) * step;
          const T *x = row_of<T>(a.x, row) + i, *g = row_of<T>(a.grad_y, row) + i;
          T* to = wanted ? row_of<T>(a.grad_x, row) + i : nullptr;
          for (int q = 0; q < kColumns; ++q) {
            const int64_t left = columns - q * L;
            if (left <= 0) break;
            const V before = load<V>(m.before + i + q * L), scale = load<V>(m.scale + i + q * L);
            grad_vector<S>(x + q * L, g + q * L, to ? to + q * L : nullptr, left < L ? int(left) : L, before, scale,
                           pending[q]);
          }
        }
        for (int64_t q = 0; q * L < columns; ++q) pending[q].flush(sums + i + q * L, sums + slots + i + q * L);
      }
    }
  };
  const auto plane = [&](double* sums, int64_t index) {
    const int64_t image = index / C, c = index % C;
    const T *x = plane_of<T>(a.x, image, c), *g = plane_of<T>(a.grad_y, image, c);
    T* to = wanted ? plane_of<T>(a.grad_x, image, c) : nullptr;
    const V before = splat<V>(m.before[c]), scale = splat<V>(m.scale[c]);
    for (int64_t from = 0; from < w.width; from += kChain * L) {
      const int64_t width = w.width - from < kChain * L ? w.width - from : kChain * L;
      Pending<S> pending;
      for_vectors<S>(width, [&](int64_t j, int n) {
        grad_vector<S>(x + from + j, g + from + j, to ? to + from + j : nullptr, n, before, scale, pending);
      });
      pending.flush(sums + c * L, sums + slots + c * L);
    }
  };
  w.run([&](int part) {
    double* const sums = shared.sums + 2 * part * slots;
    if (w.rows) return rows(sums, w.first(part), w.first(part + 1), w.width, w.repeats);
    for (int64_t i = w.first(part); i < w.first(part + 1); ++i) plane(sums, i);
  });
  if (w.rest) rows(shared.sums, w.count * w.repeats, w.count * w.repeats + w.rest, C, 1);

  const double of_ladj = ladj_gradient<S>(a), sign = a.inverse ? -1 : 1;
  for (int64_t c = 0; c < C; ++c) {
    double g = 0, gx = 0;
    for (int p = 0; p < w.parts; ++p) {
      const double* from = shared.sums + 2 * p * slots;
      for (int64_t i = w.rows ? c : c * L; i < (w.rows ? w.width : (c + 1) * L); i += w.rows ? C : 1) {
        g += from[i];
        gx += from[slots + i];
      }
    }
    const double scale = double(m.scale[c]);
    if (a.grad_shift) static_cast<S*>(a.grad_shift)[c] = S(a.inverse ? -scale * g : g);
    if (a.grad_log_scale) static_cast<S*>(a.grad_log_scale)[c] = S(sign * scale * gx + of_ladj);
  }
}

// f(S(), T()): the types of arithmetic and of x.
template <class F>
void by_types(DType type, const F& f) {
  by_scalar(type, [&](auto s) { by_storage<decltype(s)>(type, [&](auto t) { f(s, t); }); });
}
void fwd_any(const ActNormArgs& a, int threads) {
  by_types(a.type, [&](auto s, auto t) { fwd<decltype(s), decltype(t)>(a, threads); });
}
void bwd_any(const ActNormArgs& a, int threads) {
  by_types(a.type, [&](auto s, auto t) { bwd<decltype(s), decltype(t)>(a, threads); });
}

}  // namespace

extern const Kernels<ActNormArgs> actnorm_kernels;
const Kernels<ActNormArgs> actnorm_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
