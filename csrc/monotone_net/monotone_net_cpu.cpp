// Monotone networks on lanes: a row block is the elements of one feature, and the points at which each of them wants
// the network are more blocks of the same columns.
#include "../common/kernels.h"
#include "monotone_root.h"
#include "monotone_tile.h"

namespace fk::FK_ISA {
namespace {

// ---- sums over a thread's elements ----

// Gradients of the weights of one set.
template <class S>
struct SetSums {
  Sums<S> packed[kMaxMonotoneLayers];
  S *column, *last;  // [2][unit][kRowBlock]: sums, and what their rounding lost
};

template <class S>
void lay_out_sums(const MonotoneArgs& a, const MonotoneSet<S>& set, Arena& arena, SetSums<S>& s) {
  constexpr int64_t R = kRowBlock<S>;
  for (int k = 0; k + 1 < a.n; ++k) {
    const Packed<S>& p = set.packed[k];
    const int64_t columns = round_up(p.n_in, R);
    s.packed[k] = {arena.take<S>(size_t(p.out_width * columns)), arena.take<S>(size_t(2 * p.out_width * R)), columns,
                   nullptr};
  }
  s.column = arena.take<S>(size_t(2 * set.units * R));
  s.last = arena.take<S>(size_t(2 * (set.last_in + 1) * R));
}

template <class S>
void clear_sums(const MonotoneSet<S>& set, const SetSums<S>& s) {
  constexpr int64_t R = kRowBlock<S>;
  for (int k = 0; k + 1 < set.n; ++k) {
    const int64_t width = set.packed[k].out_width;
    memset(s.packed[k].weight, 0, size_t(width * s.packed[k].columns) * sizeof(S));
    memset(s.packed[k].bias, 0, size_t(2 * width * R) * sizeof(S));
  }
  memset(s.column, 0, size_t(2 * set.units * R) * sizeof(S));
  memset(s.last, 0, size_t(2 * (set.last_in + 1) * R) * sizeof(S));
}

template <class S>
void add_block(const S* from, int64_t units, S* sums) {
  const int64_t size = units * kRowBlock<S>;
  for (int64_t i = 0; i < size; i += kLanes<S>)
    add_compensated(sums + i, sums + size + i, 1, [&](int64_t) { return load<typename Simd<S>::V>(from + i); });
}

// Of all lanes and threads, in one order.
template <class S, class F>
S total_of(int parts, int64_t unit, int64_t units, const F& sums) {
  constexpr int64_t R = kRowBlock<S>;
  double total = 0;
  for (int t = 0; t < parts; ++t)
    for (int64_t i = unit * R; i < (unit + 1) * R; ++i) total += double(sums(t)[i]) + double(sums(t)[units * R + i]);
  return S(total);
}

// ---- one row block ----

template <class S>
struct Block {
  using V = typename Simd<S>::V;
  using T = Pair<V>;
  using I = typename Simd<S>::I;
  static constexpr int64_t R = kRowBlock<S>;
  const MonotoneArgs& args;
  const MonotoneSet<S>& set;
  const MonotoneRoom<S>& room;
  RowTile rows;
  int64_t feature;
  MonotoneTile<S> net;

  Block(const MonotoneArgs& a, const MonotoneSet<S>& s, const MonotoneRoom<S>& r, RowTile t, int64_t f)
      : args(a), set(s), room(r), rows(t), feature(f), net{s, r, a.spec.activation} {}

  // ---- memory ----

  // One number an element, 0 in lanes past the end, or where there are none.
  T read(const void* from, bool of_rows = false) const {
    alignas(64) S lanes[R] = {};
    const S* const p = static_cast<const S*>(from);
    const int64_t stride = of_rows ? 1 : args.features, first = of_rows ? 0 : feature;
    for (int64_t l = 0; p && l < rows.rows; ++l) lanes[l] = p[(rows.first + l) * stride + first];
    return load_pair(lanes);
  }
  void write(void* to, T v) const {
    alignas(64) S lanes[R];
    store_pair(lanes, v);
    for (int64_t l = 0; l < rows.rows; ++l) static_cast<S*>(to)[(rows.first + l) * args.features + feature] = lanes[l];
  }
  int64_t signal_at(int64_t l) const { return ((rows.first + l) * args.features + feature) * args.numbers; }
  // What the signal adds to y.
  T shift() const {
    alignas(64) S lanes[R] = {};
    for (int64_t l = 0; args.spec.shift && l < rows.rows; ++l)
      lanes[l] = static_cast<const S*>(args.signal)[signal_at(l) + args.numbers - 1];
    return load_pair(lanes);
  }
  void load_signal() const {
    const Packed<S>& p = set.packed[0];
    const S* const from = static_cast<const S*>(args.signal) + feature * args.numbers;
    load_row_blocks(rows, from, args.features * args.numbers, p.n_in, nullptr, p.in_width, room.signal);
    Outlet<S> o = {};
    o.z = room.seen;
    forward_layer(p, room.signal, RowTile{0, R}, o);
  }

  // ---- the integral ----

  // The logarithm of the integrand, of the net's output, and its derivative.
  T log_of(T u) const { return u / (1 + abs_(u) * S(1 / args.spec.log_bound)); }
  static T exponential(T v) { return {exp_(v.a), exp_(v.b)}; }
  T log_slope(T u) const {
    const T q = 1 / (1 + abs_(u) * S(1 / args.spec.log_bound));
    return q * q;
  }

  // The sum of g(from + step t) w over the rule's points, and log g at `end`.
  T rule(int n, const double* node, const double* weight, T from, T step, T end, T* log_end) const {
    T sum = {};
    for (int i = 0; i <= n; i += kPoints) {
      T v[kPoints], u[kPoints];
      const int count = n + 1 - i < kPoints ? n + 1 - i : kPoints;
      for (int b = 0; b < count; ++b) v[b] = i + b < n ? from + step * S(node[i + b]) : end;
      net.values(v, count, u);
      for (int b = 0; b < count; ++b) {
        const T log_g = log_of(u[b]);
        if (i + b < n)
          sum = sum + exponential(log_g) * S(weight[i + b]);
        else
          *log_end = log_g;
      }
    }
    return sum;
  }
  T full_rule(T x, T* log_end) const {
    return rule(args.spec.nodes, args.spec.node, args.spec.weight, T{}, x, x, log_end);
  }

  // ---- forward ----

  T forward(T x, T* log_slope_of) const {
    if (!args.spec.positive) return x * full_rule(x, log_slope_of);
    T u;
    net.values(&x, 1, &u);
    const T slope = net.slope();
    *log_slope_of = {log_(slope.a), log_(slope.b)};
    return u;
  }

  // ---- inverse ----

  struct Lanes {
    Seeker<V> a, b;
    void start(T goal, T low, T high, T first) {
      a.start(goal.a, low.a, high.a, first.a);
      b.start(goal.b, low.b, high.b, first.b);
    }
    T at() const { return {a.at, b.at}; }
    bool any() const { return any_(a.active) || any_(b.active); }
    void update(T off, T slope) { a.update(off.a, slope.a), b.update(off.b, slope.b); }
  };

  static T known_or(T y, T x) { return {select(y.a == y.a, x.a, y.a), select(y.b == y.b, x.b, y.b)}; }

  T inverse(T y, T* log_slope_of) const {
    const T bound = MonotoneTile<S>::all(S(args.spec.bound));
    return args.spec.positive ? inverse_of_net(y, bound, log_slope_of) : inverse_of_integral(y, bound, log_slope_of);
  }

  // Where a step will leave next to nothing, one more of them ends it, with the slope drawn on in a line: the last
  // steps would only show that there is nothing left. Where it did leave something the search goes on.
  T inverse_of_net(T y, T bound, T* log_slope_of) const {
    Lanes s;
    s.start(y, -bound, bound, T{});
    const bool smooth = args.spec.activation != Activation::leaky_relu;
    T from = {}, at = {}, slope_from = {}, last = {}, u;
    Pair<I> shortened = {}, ended = {};
    for (int step = 0; step < 256 && s.any(); ++step) {
      const T here = s.at();
      net.values(&here, 1, &u);
      const T slope = net.slope(), off = u - y;
      const Pair<I> open = {s.a.active, s.b.active};
      s.update(off, slope);
      if (smooth && step > 0) {
        const T left = abs_(off) / abs_(last);
        shorten(s.a, open.a, left.a, here.a, slope.a, from.a, at.a, slope_from.a, shortened.a);
        shorten(s.b, open.b, left.b, here.b, slope.b, from.b, at.b, slope_from.b, shortened.b);
      }
      last = off;
    }
    T x_end = {}, slope_end = {};
    if (any_(shortened)) {
      net.values(&at, 1, &u);
      const T there = net.slope(), by = (y - u) / there;
      const T drawn = there + (there - slope_from) * (by / (at - from));
      x_end = min_(max_(at + by, -bound), bound), slope_end = select(at == from, there, drawn);
      ended = shortened & (abs_(by) <= (abs_(at) + S(1)) * (4 * kLittle)) & (slope_end > 0);
      const Pair<I> on = shortened & !ended;
      s.a.active = on.a, s.b.active = on.b;
      s.update(u - y, there);
      for (int step = 0; step < 256 && s.any(); ++step) {
        const T here = s.at();
        net.values(&here, 1, &u);
        s.update(u - y, net.slope());
      }
    }
    const T x = known_or(y, select(ended, x_end, T{s.a.best, s.b.best}));
    T slope = select(ended, slope_end, T{s.a.slope_at_best, s.b.slope_at_best});
    slope = slope + (x - x);  // NaN where x is
    *log_slope_of = {log_(slope.a), log_(slope.b)};
    return x;
  }

  // A lane whose step leaves so little that the next one is the last: from where that goes, and where to.
  static constexpr S kLittle = sizeof(S) == 4 ? S(0x1p-18) : S(0x1p-38);
  static void shorten(Seeker<V>& s, I open, V left, V here, V slope, V& from, V& at, V& slope_from, I& shortened) {
    const I few = open & s.active & (left * abs_(s.before) <= kLittle * (1 + abs_(s.at)));
    from = select(few, here, from), at = select(few, s.at, at), slope_from = select(few, slope, slope_from);
    shortened |= few;
    s.active &= ~few;
  }

  // First by a rule of few points from each place to the next, which costs little and errs a little; then by the full
  // one, whose slope is off by what that rule errs, until a step is so short that few points are as good.
  T inverse_of_integral(T y, T bound, T* log_slope_of) const {
    static constexpr double node[] = {0.1127016653792583, 0.5, 0.8872983346207417};
    static constexpr double weight[] = {5.0 / 18, 8.0 / 18, 5.0 / 18};
    const T zero = {}, sign = select(y < zero, zero - 1, zero + 1);
    const T low = min_(zero, sign * bound), high = max_(zero, sign * bound);
    Lanes s;
    T log_g, before = {}, area = {};
    rule(0, node, weight, zero, zero, zero, &log_g);
    const T first = min_(max_(y / exponential(log_g), low), high);
    s.start(y, low, high, first);
    constexpr S near = S(1e-3);
    for (int step = 0; step < 24 && s.any(); ++step) {
      const T at = s.at(), by = at - before;
      area = area + by * rule(3, node, weight, before, by, at, &log_g);
      s.update(area - y, exponential(log_g));
      before = at;
      s.a.active &= ~(abs_(s.a.before) <= near * (1 + abs_(s.a.at)));
      s.b.active &= ~(abs_(s.b.before) <= near * (1 + abs_(s.b.at)));
    }
    const T start = s.at();
    s.start(y, low, high, start);
    // Of its error a step leaves a share: what the last one left, and before that what a rule of many points leaves.
    const T share = MonotoneTile<S>::all(args.spec.nodes < 12 ? S(1) : S(0x1p-10));
    T from = start, at = start, off = {}, last = {};
    for (int step = 0; step < 256 && s.any(); ++step) {
      const T here = s.at(), was = here * full_rule(here, &log_g) - y;
      const Pair<I> open = {s.a.active, s.b.active};
      s.update(was, exponential(log_g));
      const T left = step == 0 ? share : abs_(was) / abs_(last);
      close(s.a, open.a, here.a, was.a, left.a, from.a, at.a, off.a);
      close(s.b, open.b, here.b, was.b, left.b, from.b, at.b, off.b);
      last = was;
    }
    // The rest of the way: two points and the slope at its end.
    static constexpr double node2[] = {0.21132486540518713, 0.7886751345948129}, weight2[] = {0.5, 0.5};
    const T by = at - from, more = by * rule(2, node2, weight2, from, by, at, log_slope_of);
    T x = at - (off + more) / exponential(*log_slope_of);
    x = select(by == 0, at, min_(max_(x, low), high));
    return known_or(y, x);
  }

  // A lane that rests now: from where its last step goes, where to, and how far f was off before.
  static void close(Seeker<V>& s, I open, V here, V was, V left, V& from, V& at, V& off) {
    const I rests = open & ~s.active;
    from = select(rests, s.best, from), at = select(rests, s.best, at), off = select(rests, V{}, off);
    const I short_step = open & s.active & (left * abs_(s.before) <= Seeker<V>::kUlp * (1 + abs_(s.at)));
    from = select(short_step, here, from), at = select(short_step, s.at, at), off = select(short_step, was, off);
    s.active &= ~short_step;
  }

  // ---- backward ----

  // x: of the map; g_y and g_ladj: gradients of what the op returned.
  void backward(const SetSums<S>* sums) const {
    const bool inverse = args.spec.inverse;
    const Sums<S>* const packed = sums ? sums->packed : nullptr;
    const T x = read(inverse ? args.root : args.x), g_out = read(args.grad_y);
    const T g_given = read(args.grad_ladj, true), g_ladj = inverse ? -g_given : g_given;
    net.clear(sums);
    T g_x = {}, g_y, u;
    if (args.spec.positive) {
      net.values(&x, 1, &u);
      const T slope = net.slope(), g_slope = g_ladj / slope;
      if (inverse) {
        net.slope_back(x, T{}, g_slope, &g_x, packed);
        g_x = (g_out + g_x) / slope;
        g_y = -g_x;
        net.slope_back(x, g_y, T{}, nullptr, packed);
      } else {
        g_y = g_out;
        net.slope_back(x, g_y, g_slope, &g_x, packed);
      }
    } else {
      net.values(&x, 1, &u);
      const T slope = exponential(log_of(u)), g_u = g_ladj * log_slope(u);
      net.values_back(&x, 1, &g_u, &g_x, packed);
      if (inverse) {
        g_x = (g_out + g_x) / slope;
        g_y = -g_x;
      } else {
        g_x = g_x + g_out * slope;
        g_y = g_out;
      }
      points_back(x, g_y * x, packed);
    }
    if (args.grad_x) write(args.grad_x, g_x);
    if (args.grad_signal) write_signal(g_y);
    if (!sums) return;
    const Packed<S>& p = set.packed[0];
    if (p.n_in > 0) transpose_row_blocks(RowTile{0, R}, room.signal, p.in_width, p.n_in, room.transposed);
    weight_gradients(p, room.g_seen, room.transposed, 1, packed[0]);
    add_block(room.g_column, set.units, sums->column);
    add_block(room.g_last, set.last_in + 1, sums->last);
  }

  void points_back(T x, T g_sum, const Sums<S>* packed) const {
    for (int i = 0; i < args.spec.nodes; i += kPoints) {
      T v[kPoints], u[kPoints], g_u[kPoints];
      const int count = args.spec.nodes - i < kPoints ? args.spec.nodes - i : kPoints;
      for (int b = 0; b < count; ++b) v[b] = x * S(args.spec.node[i + b]);
      net.values(v, count, u);
      for (int b = 0; b < count; ++b)
        g_u[b] = g_sum * S(args.spec.weight[i + b]) * exponential(log_of(u[b])) * log_slope(u[b]);
      net.values_back(v, count, g_u, nullptr, packed);
    }
  }

  void write_signal(T g_shift) const {
    const Packed<S>& p = set.packed[0];
    S* const to = static_cast<S*>(args.grad_signal);
    const S* const none = nullptr;
    backward_layer(p, room.g_seen, 1, Activation::identity, none, none, none, room.g[0]);
    S* at[R];
    row_pointers<S>(rows, 0, to + feature * args.numbers, args.features * args.numbers, room.spare, at);
    store_row_block(room.g[0], p.n_in, nullptr, at);
    if (!args.spec.shift) return;
    alignas(64) S lanes[R];
    store_pair(lanes, g_shift);
    for (int64_t l = 0; l < rows.rows; ++l) to[signal_at(l) + args.numbers - 1] = lanes[l];
  }
};

// ---- the whole batch ----

// The row blocks of all features, feature by feature, on threads.
template <class S>
struct MonotoneDeal {
  int64_t rows, blocks, tasks;
  int parts;

  MonotoneDeal(const MonotoneArgs& a, int points, int threads) : rows(a.rows) {
    blocks = (rows + kRowBlock<S> - 1) / kRowBlock<S>;
    tasks = blocks * a.features;
    int64_t work = 0;
    for (int k = 0; k < a.n; ++k) work += a.layers[k].n_in * a.layers[k].n_out;
    const int64_t useful = 1 + tasks * kRowBlock<S> * work * points / kGrainWork;
    parts = int(threads < tasks ? threads : tasks);
    parts = int(parts < useful ? parts : useful);
  }
  RowTile tile(int64_t task) const {
    const int64_t first = task % blocks * kRowBlock<S>;
    return {first, rows - first < kRowBlock<S> ? rows - first : kRowBlock<S>};
  }
};

template <class S>
MonotoneSet<S>* lay_out_sets(const MonotoneArgs& a, bool backward, bool fill, Arena& arena) {
  MonotoneSet<S>* const sets = arena.take<MonotoneSet<S>>(size_t(a.sets));
  MonotoneSet<S> counted;
  for (int64_t i = 0; i < a.sets; ++i) lay_out_set(a, i, backward, fill, arena, fill ? sets[i] : counted);
  return sets;
}

template <class S>
void fwd(const MonotoneArgs& a, int threads) {
  using T = Pair<typename Simd<S>::V>;
  const MonotoneDeal<S> deal(a, a.spec.positive ? 2 : a.spec.nodes, threads);
  S* terms = nullptr;
  const auto lay = [&](Arena& arena, bool fill) {
    terms = arena.take<S>(size_t(a.rows * a.features));
    return lay_out_sets<S>(a, false, fill, arena);
  };
  Arena counted(nullptr);
  lay(counted, false);
  Arena shared(workspace(Scratch::shared, counted.used()));
  const MonotoneSet<S>* const sets = lay(shared, true);
  int64_t taken = 0;
  parallel_for(deal.parts, 1, deal.parts, [&](int64_t, int64_t) {
    const auto room = in_scratch(Scratch::tile, [&](Arena& arena) { return MonotoneRoom<S>(a, false, arena); });
    for (int64_t i; (i = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < deal.tasks;) {
      const int64_t feature = i / deal.blocks;
      const Block<S> block(a, sets[a.sets == 1 ? 0 : feature], room, deal.tile(i), feature);
      block.load_signal();
      const T v = block.read(a.x), shift = block.shift();
      T log_slope, y;
      if (a.spec.inverse) {
        y = block.inverse(v - shift, &log_slope);
        log_slope = -log_slope;
      } else {
        y = block.forward(v, &log_slope) + shift;
      }
      block.write(a.y, y);
      block.write(terms, log_slope);
    }
  });
  for (int64_t i = 0; i < a.rows; ++i) {
    double sum = 0;
    for (int64_t d = 0; d < a.features; ++d) sum += double(terms[i * a.features + d]);
    static_cast<S*>(a.ladj)[i] = S(sum);
  }
}

// Adds up what the threads summed for one set.
template <class S>
void finish(const MonotoneArgs& a, int64_t set, const MonotoneSet<S>& m, const SetSums<S>* sums, int parts) {
  const auto of = [&](int t) -> const SetSums<S>& { return sums[t * a.sets + set]; };
  for (int k = 0; k < a.n; ++k) {
    const MonotoneLayer& l = a.layers[k];
    S* const weight = static_cast<S*>(l.grad_weight) + (l.grad_weight ? set * l.n_out * l.n_in : 0);
    S* const bias = static_cast<S*>(l.grad_bias) + (l.grad_bias ? set * l.n_out : 0);
    if (k == a.n - 1) {
      const auto last = [&](int t) { return of(t).last; };
      for (int64_t j = 0; l.grad_weight && j < l.n_in; ++j) weight[j] = total_of<S>(parts, j, l.n_in + 1, last);
      if (l.grad_bias) *bias = total_of<S>(parts, l.n_in, l.n_in + 1, last);
      continue;
    }
    const Packed<S>& p = m.packed[k];
    for (int64_t j = 0; j < l.n_out; ++j) {
      S* const row = weight + j * l.n_in;
      if (l.grad_weight) {
        if (k == 0) row[0] = total_of<S>(parts, j, m.units, [&](int t) { return of(t).column; });
        for (int64_t i = 0; i < p.n_in; ++i) {
          S sum = 0;
          for (int t = 0; t < parts; ++t) sum += of(t).packed[k].weight[j * of(t).packed[k].columns + i];
          row[i + (k == 0)] = sum;
        }
      }
      if (l.grad_bias) bias[j] = total_of<S>(parts, j, p.out_width, [&](int t) { return of(t).packed[k].bias; });
    }
  }
}

template <class S>
void bwd(const MonotoneArgs& a, int threads) {
  bool weights = false;
  for (int k = 0; k < a.n; ++k) weights |= a.layers[k].grad_weight || a.layers[k].grad_bias;
  const MonotoneDeal<S> deal(a, 3 * (a.spec.positive ? 2 : a.spec.nodes), threads);
  SetSums<S>* sums = nullptr;
  const auto lay = [&](Arena& arena, bool fill) {
    const MonotoneSet<S>* const sets = lay_out_sets<S>(a, true, fill, arena);
    if (!weights) return sets;
    MonotoneSet<S> like;
    Arena none(nullptr);
    lay_out_set(a, 0, true, false, none, like);
    sums = arena.take<SetSums<S>>(size_t(deal.parts * a.sets));
    SetSums<S> counted;
    for (int64_t i = 0; i < deal.parts * a.sets; ++i) lay_out_sums(a, like, arena, fill ? sums[i] : counted);
    return sets;
  };
  Arena counted(nullptr);
  lay(counted, false);
  Arena shared(workspace(Scratch::shared, counted.used()));
  const MonotoneSet<S>* const sets = lay(shared, true);
  parallel_for(deal.parts, 1, deal.parts, [&](int64_t part, int64_t end) {
    const auto room = in_scratch(Scratch::tile, [&](Arena& arena) { return MonotoneRoom<S>(a, true, arena); });
    for (; part < end; ++part) {
      SetSums<S>* const own = weights ? sums + part * a.sets : nullptr;
      for (int64_t i = 0; own && i < a.sets; ++i) clear_sums(sets[i], own[i]);
      for (int64_t i = deal.tasks * part / deal.parts; i < deal.tasks * (part + 1) / deal.parts; ++i) {
        const int64_t feature = i / deal.blocks, set = a.sets == 1 ? 0 : feature;
        const Block<S> block(a, sets[set], room, deal.tile(i), feature);
        block.load_signal();
        block.backward(own ? own + set : nullptr);
      }
    }
  });
  for (int64_t i = 0; weights && i < a.sets; ++i) finish(a, i, sets[i], sums, deal.parts);
}

void fwd_any(const MonotoneArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const MonotoneArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<MonotoneArgs> monotone_kernels;
const Kernels<MonotoneArgs> monotone_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
