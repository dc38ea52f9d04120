// SIMD loops of the affine map. Elements go through in tiles of a few hundred, in the order of the nest of loops: what
// lies dense in memory is computed where it lies, anything else (other strides, 16-bit types) through a copy in L1.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "../common/parallel.h"
#include "affine.h"
#include "affine_map.h"

namespace fk::FK_ISA {

template <class S>
BlockMap<S> block_map(const AffineSpec& spec, Arena& arena) {
  return block_map_of<S, AffineMap<S>>(spec, arena);
}
template BlockMap<float> block_map(const AffineSpec&, Arena&);
template BlockMap<double> block_map(const AffineSpec&, Arena&);

namespace {

using A = AffineTensors;

constexpr int kTile = 512;
// Elements worth a thread of their own (about 10 us of work).
constexpr int kGrainFwd = 8192, kGrainBwd = 4096;

// A place in the nest: every tensor's offset there.
struct Cursor {
  const AffineNest& nest;
  int64_t index[AffineNest::kMaxDims];
  int64_t at[A::count] = {};

  Cursor(const AffineNest& n, int64_t element) : nest(n) {
    for (int d = n.ndim - 1; d >= 0; --d) {
      index[d] = element % n.size[d];
      element /= n.size[d];
      for (int k = 0; k < A::count; ++k) at[k] += index[d] * n.stride[d][k];
    }
  }
  // Elements from here to the end of the innermost loop.
  int64_t run() const { return nest.size[nest.ndim - 1] - index[nest.ndim - 1]; }
  // By n steps of loop d, not beyond its end; the innermost by default.
  void advance(int64_t n) { advance(nest.ndim - 1, n); }
  void advance(int d, int64_t n) {
    index[d] += n;
    for (int k = 0; k < A::count; ++k) at[k] += n * nest.stride[d][k];
    for (; d > 0 && index[d] == nest.size[d]; --d) {
      for (int k = 0; k < A::count; ++k) at[k] += nest.stride[d - 1][k] - index[d] * nest.stride[d][k];
      index[d] = 0;
      ++index[d - 1];
    }
  }
};

// Calls f(elements before it, length) for each run among the next n elements, and ends behind them.
template <class F>
FK_INLINE void for_runs(Cursor& c, int64_t n, const F& f) {
  for (int64_t done = 0; done < n;) {
    const int64_t left = n - done, length = left < c.run() ? left : c.run();
    f(done, length);
    c.advance(length);
    done += length;
  }
}

// ---- between memory and a tile ----

// Calls f with a pointer of the type that `type` names; S is the arithmetic type.
template <class S, class F>
FK_INLINE void by_pointer(DType type, void* p, const F& f) {
  by_storage<S>(type, [&](auto t) { f(static_cast<decltype(t)*>(p)); });
}

template <class S, class T>
void copy_in(const T* from, int64_t step, int64_t n, S* to) {
  if (step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i * step]);
}
template <class S, class T>
void copy_out(const S* from, int64_t n, T* to, int64_t step) {
  if (step == 1)
    for (int64_t i = 0; i < n; ++i) from_float(from[i], to[i]);
  else
    for (int64_t i = 0; i < n; ++i) from_float(from[i], to[i * step]);
}

// Two tensors that alternate in memory: read and written together, each cache line once.
template <class S, class T>
void copy_in(const T* from, int64_t n, S* even, S* odd) {
  for (int64_t i = 0; i < n; ++i) {
    even[i] = to_float(from[2 * i]);
    odd[i] = to_float(from[2 * i + 1]);
  }
}
template <class S, class T>
void copy_out(const S* even, const S* odd, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) {
    from_float(even[i], to[2 * i]);
    from_float(odd[i], to[2 * i + 1]);
  }
}

// Elements that go through together: runs of the innermost loop, one after another in the loop around it; or whatever
// comes next, through copies.
struct Block {
  int64_t runs, run;
  bool dense;  // not through copies alone
  int64_t size() const { return runs * run; }
};

// Some elements of all tensors, each where its pointer says: in memory, or here.
template <class S>
struct Tile {
  const AffineArgs& a;
  S* p[A::count] = {};
  int64_t jump[A::count];  // between the runs of a block
  const uint8_t* mask = nullptr;
  bool packed_params, packed_grads;  // logit and shift alternate in memory
  alignas(64) S own[A::count][kTile];
  uint8_t own_mask[kTile];
  alignas(64) S ladj[kTile];

  explicit Tile(const AffineArgs& args) : a(args), packed_params(alternate(A::u)), packed_grads(alternate(A::grad_u)) {
    memset(own, 0, sizeof own);  // what is absent is 0
    memset(ladj, 0, sizeof ladj);
  }

  int64_t step(int k) const { return a.nest.stride[a.nest.ndim - 1][k]; }
  DType type(int k) const {
    return k == A::u || k == A::t || k == A::grad_u || k == A::grad_t ? a.params_type : a.x_type;
  }
  int64_t bytes(int k) const { return k == A::mask ? 1 : type(k) == DType::f64 ? 8 : type(k) == DType::f32 ? 4 : 2; }
  char* start(int k, const Cursor& c) const { return static_cast<char*>(a.data[k]) + c.at[k] * bytes(k); }
  bool alternate(int k) const {
    const char *first = static_cast<char*>(a.data[k]), *second = static_cast<char*>(a.data[k + 1]);
    if (!first || !second || (second - first != bytes(k) && first - second != bytes(k))) return false;
    for (int d = 0; d < a.nest.ndim; ++d)
      if (a.nest.stride[d][k] != a.nest.stride[d][k + 1]) return false;
    return step(k) == 2;
  }

  // The next elements, n at the most, that go through together.
  Block next(const Cursor& c, int64_t n) const {
    const auto fills_vectors = [](int64_t run) { return run % (2 * kLanes<S>) == 0 || run >= 16 * kLanes<S>; };
    const int64_t run = c.run();
    const int d = a.nest.ndim - 2;
    if (run >= n) return {1, n, true};
    if (!fills_vectors(run)) return {1, n, false};
    if (d < 0 || run != a.nest.size[d + 1]) return {1, run, true};
    const int64_t left = a.nest.size[d] - c.index[d], runs = n / run;
    return {runs < left ? runs : left, run, true};
  }

  // Chooses the places of the elements of a block, and fills in those of `inputs` that are not read where they lie.
  template <int Inputs>
  void load(Cursor& c, const Block& b, const int (&inputs)[Inputs]) {
    const int outer = a.nest.ndim - 2;
    const auto place = [&](int k, int64_t size) {
      const bool there = a.data[k] && b.dense && step(k) == 1 && bytes(k) == size;
      jump[k] = there && b.runs > 1 ? a.nest.stride[outer][k] : b.run;
      return there;
    };
    for (int k = 0; k < A::count; ++k)
      if (k != A::mask) p[k] = place(k, sizeof(S)) ? reinterpret_cast<S*>(start(k, c)) : own[k];
    const uint8_t* flags = static_cast<const uint8_t*>(a.data[A::mask]);
    mask = !flags ? nullptr : place(A::mask, 1) ? flags + c.at[A::mask] : own_mask;
    bool copies = packed_params || mask == own_mask;
    for (int k : inputs) copies = copies || (p[k] == own[k] && a.data[k]);
    if (!copies) return skip(c, b);
    for_runs(c, b.size(), [&](int64_t done, int64_t length) {
      if (packed_params) copy_pair(A::u, c, done, length, [](auto* p, int64_t n, S* a, S* b) { copy_in(p, n, a, b); });
      for (int k : inputs)
        if (p[k] == own[k] && a.data[k] && !(packed_params && (k == A::u || k == A::t)))
          by_pointer<S>(type(k), start(k, c), [&](auto* from) { copy_in(from, step(k), length, own[k] + done); });
      if (mask == own_mask)
        for (int64_t i = 0; i < length; ++i) own_mask[done + i] = flags[c.at[A::mask] + i * step(A::mask)];
    });
  }

  // Writes back those of `outputs` that were not written where they belong. `c`: where the block began.
  template <int Outputs>
  void store(Cursor& c, const Block& b, const int (&outputs)[Outputs]) {
    bool copies = packed_grads;
    for (int k : outputs) copies = copies || (p[k] == own[k] && a.data[k]);
    if (!copies) return skip(c, b);
    for_runs(c, b.size(), [&](int64_t done, int64_t length) {
      if (packed_grads)
        copy_pair(A::grad_u, c, done, length, [](auto* p, int64_t n, S* a, S* b) { copy_out(a, b, n, p); });
      for (int k : outputs)
        if (p[k] == own[k] && a.data[k] && !(packed_grads && (k == A::grad_u || k == A::grad_t)))
          by_pointer<S>(type(k), start(k, c), [&](auto* to) { copy_out(own[k] + done, length, to, step(k)); });
    });
  }

  // Calls f(elements before it, array of the block, mask) for every run.
  template <int Arrays, class F>
  FK_INLINE void for_each_run(const Block& b, const int (&which)[Arrays], const F& f) const {
    S* at[Arrays];
    for (int i = 0; i < Arrays; ++i) at[i] = p[which[i]];
    const uint8_t* flags = mask;
    for (int64_t r = 0; r < b.runs; ++r) {
      f(r * b.run, at, flags);
      for (int i = 0; i < Arrays; ++i) at[i] += jump[which[i]];
      if (flags) flags += jump[A::mask];
    }
  }

  static void skip(Cursor& c, const Block& b) { b.runs > 1 ? c.advance(c.nest.ndim - 2, b.runs) : c.advance(b.run); }

  // Calls f(memory, n, copy of the one that comes first there, of the other).
  template <class F>
  FK_INLINE void copy_pair(int k, const Cursor& c, int64_t done, int64_t n, const F& f) {
    const int first = a.data[k] < a.data[k + 1] ? k : k + 1, second = 2 * k + 1 - first;
    by_pointer<S>(a.params_type, start(first, c), [&](auto* p) { f(p, n, own[first] + done, own[second] + done); });
  }
};

// ---- computing on a tile ----

template <class S>
FK_INLINE auto load_mask(const uint8_t* p) {
  using I = typename Simd<S>::I;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<S>)));
  Bytes a, b;
  memcpy(&a, p, sizeof a);
  memcpy(&b, p + sizeof a, sizeof b);
  return Pair<I>{__builtin_convertvector(a, I) != 0, __builtin_convertvector(b, I) != 0};
}

// Calls f(first element) for every block of N of the n elements of a tile; the last ones are a block in a copy.
// `arrays` are the pointers f reads and writes, `mask` its mask.
template <class S, int Arrays, class F>
FK_INLINE void for_blocks(int64_t n, S* const (&arrays)[Arrays], const uint8_t* mask, const F& f) {
  constexpr int N = 2 * kLanes<S>;
  int64_t i = 0;
  for (; i + N <= n; i += N) f(arrays, mask, i);
  if (i == n) return;
  alignas(64) S rest[Arrays][N] = {};
  uint8_t rest_mask[N] = {};
  S* at[Arrays];
  for (int k = 0; k < Arrays; ++k) {
    at[k] = rest[k];
    for (int64_t l = 0; l < n - i; ++l) rest[k][l] = arrays[k][i + l];
  }
  for (int64_t l = 0; mask && l < n - i; ++l) rest_mask[l] = mask[i + l];
  f(at, mask ? rest_mask : nullptr, 0);
  for (int k = 0; k < Arrays; ++k)
    for (int64_t l = 0; l < n - i; ++l) arrays[k][i + l] = rest[k][l];
}

template <class S>
void eval_block(const Affine<S>& map, const Tile<S>& tile, const Block& b, S* ladj_of) {
  using T = Pair<typename Simd<S>::V>;
  tile.for_each_run(b, {A::x, A::u, A::t, A::y}, [&](int64_t done, S* const(&at)[4], const uint8_t* flags) {
    S* const arrays[] = {at[0], at[1], at[2], at[3], ladj_of + done};
    for_blocks<S>(b.run, arrays, flags, [&](S* const(&p)[5], const uint8_t* mask, int64_t i) {
      const T v = load_pair(p[0] + i);
      T out, ladj;
      map.eval(load_pair(p[1] + i), load_pair(p[2] + i), v, &out, &ladj);
      if (mask) {
        const auto on = load_mask<S>(mask + i);
        out = select(on, out, v);
        ladj = select(on, ladj, T{});
      }
      store_pair(p[3] + i, out);
      store_pair(p[4] + i, ladj);
    });
  });
}

template <class S>
void grad_block(const Affine<S>& map, const Tile<S>& tile, const Block& b, S* grad_ladj) {
  using T = Pair<typename Simd<S>::V>;
  constexpr int kArrays[] = {A::x, A::u, A::t, A::grad_y, A::grad_x, A::grad_u, A::grad_t};
  tile.for_each_run(b, kArrays, [&](int64_t done, S* const(&at)[7], const uint8_t* flags) {
    S* const arrays[] = {at[0], at[1], at[2], at[3], at[4], at[5], at[6], grad_ladj + done};
    for_blocks<S>(b.run, arrays, flags, [&](S* const(&p)[8], const uint8_t* mask, int64_t i) {
      const T g = load_pair(p[3] + i), g_ladj = load_pair(p[7] + i);
      T g_u, g_t;
      T g_x = map.grad(load_pair(p[1] + i), load_pair(p[2] + i), load_pair(p[0] + i), g, g_ladj, &g_u, &g_t);
      if (mask) {
        const auto on = load_mask<S>(mask + i);
        g_x = select(on, g_x, g);
        g_u = select(on, g_u, T{});
        g_t = select(on, g_t, T{});
      }
      store_pair(p[4] + i, g_x);
      store_pair(p[5] + i, g_u);
      store_pair(p[6] + i, g_t);
    });
  });
}

template <class S>
double sum(const S* p, int64_t n) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  double total = 0;
  int64_t i = 0;
  if (n >= L) {
    V lanes = {};
    for (; i + L <= n; i += L) lanes += load<V>(p + i);
    double tree[L];
    for (int l = 0; l < L; ++l) tree[l] = lanes[l];
    for (int w = L / 2; w > 0; w /= 2)
      for (int l = 0; l < w; ++l) tree[l] += tree[l + w];
    total = tree[0];
  }
  for (; i < n; ++i) total += p[i];
  return total;
}

// ---- tiles of all elements ----

// Rows are dealt out whole. Those longer than a tile take several, shorter ones share one; where tiles begin follows
// from the length of a row alone, and with it every bit of ladj.
struct Groups {
  int64_t rows, event, per_group, count, grain;
  Groups(const AffineArgs& a, int64_t elements) : rows(a.rows), event(a.event) {
    per_group = event < kTile ? kTile / event : 1;
    count = (rows + per_group - 1) / per_group;
    grain = (elements + per_group * event - 1) / (per_group * event);
  }
  // Calls f(first row, rows, elements before the tile in its row, elements) for the tiles of [g0, g1).
  template <class F>
  FK_INLINE void for_tiles(int64_t g0, int64_t g1, const F& f) const {
    for (int64_t g = g0; g < g1; ++g) {
      const int64_t row = g * per_group, n = row + per_group < rows ? per_group : rows - row;
      if (event <= kTile)
        f(row, n, int64_t(0), n * event);
      else
        for (int64_t e = 0; e < event; e += kTile) f(row, n, e, e + kTile < event ? kTile : event - e);
    }
  }
};

void pass_rows(const AffinePass& p, int64_t first, int64_t rows) {
  if (!p.to) return;
  const auto pass = [&](int64_t at, int64_t n) {
    p.from ? memcpy(p.to + at, p.from + at, n) : memset(p.to + at, 0, n);
  };
  for (int64_t r = first * p.row, last = r + rows * p.row; r < last; r += p.row) {
    pass(r, p.begin);
    pass(r + p.end, p.row - p.end);
  }
}

template <class S>
void fwd_groups(const Affine<S>& map, const AffineArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  Tile<S> tile(a);
  Cursor in(a.nest, g0 * groups.per_group * a.event), out = in;
  S* ladj = static_cast<S*>(a.ladj);
  double total = 0;
  groups.for_tiles(g0, g1, [&](int64_t row, int64_t rows, int64_t before, int64_t n) {
    if (before == 0) pass_rows(a.pass, row, rows);
    for (int64_t done = 0; done < n;) {
      const Block b = tile.next(in, n - done);
      tile.load(in, b, {A::x, A::u, A::t});
      eval_block(map, tile, b, tile.ladj + done);
      tile.store(out, b, {A::y});
      done += b.size();
    }
    if (a.event > kTile) {
      total = (before ? total : 0) + sum(tile.ladj, n);
      ladj[row] = S(total);
    } else {
      for (int64_t r = 0; r < rows; ++r) ladj[row + r] = S(sum(tile.ladj + r * a.event, a.event));
    }
  });
}

template <class S>
void bwd_groups(const Affine<S>& map, const AffineArgs& a, const Groups& groups, int64_t g0, int64_t g1) {
  Tile<S> tile(a);
  Cursor in(a.nest, g0 * groups.per_group * a.event), out = in;
  const S* ladj = static_cast<const S*>(a.ladj);
  groups.for_tiles(g0, g1, [&](int64_t row, int64_t rows, int64_t before, int64_t n) {
    if (before == 0) pass_rows(a.pass, row, rows);
    for (int64_t r = 0, i = 0; ladj && r < rows; ++r)
      for (const int64_t end = rows == 1 ? n : i + a.event; i < end; ++i) tile.ladj[i] = ladj[row + r];
    for (int64_t done = 0; done < n;) {
      const Block b = tile.next(in, n - done);
      tile.load(in, b, {A::x, A::u, A::t, A::grad_y});
      grad_block(map, tile, b, tile.ladj + done);
      tile.store(out, b, {A::grad_x, A::grad_u, A::grad_t});
      done += b.size();
    }
  });
}

template <class S>
void run(const AffineSpec& s, const AffineArgs& a, int threads, bool backward) {
  const Affine<S> map(s);
  const Groups groups(a, backward ? kGrainBwd : kGrainFwd);
  parallel_for(groups.count, groups.grain, threads, [&](int64_t g0, int64_t g1) {
    backward ? bwd_groups<S>(map, a, groups, g0, g1) : fwd_groups<S>(map, a, groups, g0, g1);
  });
}

void fwd_any(const AffineSpec& s, const AffineArgs& a, int threads) {
  by_scalar(a.x_type, [&](auto t) { run<decltype(t)>(s, a, threads, false); });
}
void bwd_any(const AffineSpec& s, const AffineArgs& a, int threads) {
  by_scalar(a.x_type, [&](auto t) { run<decltype(t)>(s, a, threads, true); });
}

}  // namespace

extern const Kernels<AffineSpec, AffineArgs> affine_kernels;
const Kernels<AffineSpec, AffineArgs> affine_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
