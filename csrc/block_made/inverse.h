// The inverse in one sweep over the features, and the way back through it. What stands before a feature adds a constant
// to the layers of its own units, which are an increasing function of one number.
#pragma once
#include "../univariate/root_lanes.h"
#include "backward.h"

namespace fk::FK_ISA {

// How far from 0 a root is looked for.
template <class S>
inline constexpr S kFarthest = sizeof(S) == 4 ? S(1e18f) : S(1e150);

// Room for one feature's own layers, of one row block.
template <class S>
struct Own {
  S* constant[kMaxLayers];  // [after], of what stands before
  S* h[2];                  // [most units]
  S* slope[2];
  S *v, *t, *logs[2];
  S* g[kMaxLayers];  // backward: what enters layer k gets from the features behind

  Own(const BlockArgs& a, bool backward, Arena& arena) {
    int64_t most = 1;
    for (int k = 0; k < a.n; ++k) {
      most = a.layers[k].after > most ? a.layers[k].after : most;
      constant[k] = backward ? nullptr : arena.take<S>(size_t(a.layers[k].after * kRowBlock<S>));
      g[k] = backward ? arena.take<S>(size_t(a.layers[k].before * kRowBlock<S>)) : nullptr;
    }
    for (S** buffer : {&h[0], &h[1], &slope[0], &slope[1], &v, &t, &logs[0], &logs[1]})
      *buffer = arena.take<S>(size_t(most * kRowBlock<S>));
  }
};

// The feature's own function at v: its value and its slope.
template <class S>
void own_value(const BlockNet<S>& net, int64_t d, const Own<S>& own, PairOf<S> v, PairOf<S>* f, PairOf<S>* slope) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  store_pair(own.h[0], v);
  store_pair(own.slope[0], both<T>(S(1)));
  for (int k = 0; k < a.n; ++k) {
    const Blocks<S>& b = net.blocks[k];
    const S* const w = b.own(d, 0);
    S *const z = own.h[(k + 1) % 2], *const along = own.slope[(k + 1) % 2];
    products(w, 1, b.n_in, own.h[k % 2], b.before(), b.after(),
             [&](int64_t i, T sum) { store_pair(z + i * R, load_pair(own.constant[k] + i * R) + sum); });
    products(w, 1, b.n_in, own.slope[k % 2], b.before(), b.after(), [&](int64_t i, T sum) {
      if (k < a.n - 1) {
        const auto [value, at_z] = with_slope(a.activation, load_pair(z + i * R));
        store_pair(z + i * R, value);
        sum = sum * at_z;
      }
      store_pair(along + i * R, sum);
    });
  }
  *f = net.residual.value(v, load_pair(own.h[a.n % 2]));
  const T of_f = net.residual.passed * load_pair(own.slope[a.n % 2]);
  *slope = a.residual == BlockResidual::none ? of_f : of_f + net.residual.kept;
}

// The same with the slope's logarithm, leaving the units that enter each layer where those of the features behind look
// for them: in[k] of the row block.
template <class S>
void settle(const BlockNet<S>& net, int64_t d, const Own<S>& own, PairOf<S> v, S* const* in, PairOf<S>* f,
            PairOf<S>* log_slope) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  store_pair(in[0] + d * R, v);
  store_pair(own.logs[0], T{});
  T last, log_last;
  for (int k = 0; k < a.n; ++k) {
    const Blocks<S>& b = net.blocks[k];
    products(b.own(d, 0), 1, b.n_in, in[k] + d * b.before() * R, b.before(), b.after(),
             [&](int64_t i, T sum) { store_pair(own.h[0] + i * R, load_pair(own.constant[k] + i * R) + sum); });
    through_block(b, d, own.logs[k % 2], own.v, own.t, [&](int64_t i, T logs) {
      const T z = load_pair(own.h[0] + i * R);
      if (k == a.n - 1) {
        last = z, log_last = logs;
        return;
      }
      const auto [value, of_activation] = with_log_slope(a.activation, z);
      store_pair(in[k + 1] + (d * b.after() + i) * R, value);
      store_pair(own.logs[(k + 1) % 2] + i * R, logs + of_activation);
    });
  }
  *f = net.residual.value(v, last);
  *log_slope = net.residual.log_slope(log_last);
}

// Between two distances from 0, in the middle of their logarithms.
template <class S>
struct MiddleOfLogs {
  template <class T>
  FK_INLINE T operator()(T low, T high) const {
    return sqrt_(max_(low, T{} + S(1) / kFarthest<S>)) * sqrt_(high);
  }
};

// The least distance at which the target is reached, by halving alone: from one where so much of it is missing, along
// plateaus. Of what is as near, the last, which lies in the bracket.
template <class S, class Along>
PairOf<S> first_root(PairOf<S> target, PairOf<S> from, PairOf<S> missing, const Along& along) {
  using T = PairOf<S>;
  constexpr int steps = sizeof(S) == 4 ? 32 : 64;  // some 2^7 or 2^10 binades, to a rounding
  T low = select(missing > S(0), from, T{}), high = select(missing > S(0), both<T>(kFarthest<S>), from);
  T best = from, least = abs_(missing);
  for (int step = 0; step < steps; ++step) {
    const T m = MiddleOfLogs<S>()(low, high);
    T f, slope;
    along(m, &f, &slope);
    const T off = f - target;
    const auto nearer = abs_(off) <= least, above = off >= S(0);
    best = select(nearer, m, best), least = select(nearer, abs_(off), least);
    low = select(above, low, m), high = select(above, m, high);
  }
  return best;
}

// Where feature d is the target, NaN where it never is: Newton's method on the distance from 0, whose bracket is halved
// in its logarithm.
template <class S>
PairOf<S> own_root(const BlockNet<S>& net, int64_t d, const Own<S>& own, PairOf<S> target, S* const* in,
                   PairOf<S>* log_slope) {
  using T = PairOf<S>;
  using V = typename Simd<S>::V;
  T f, slope;
  own_value(net, d, own, T{}, &f, &slope);
  const T sign = select(target < f, both<T>(S(-1)), both<T>(S(1)));
  const T far = both<T>(kFarthest<S>);
  const T first = select(target == f, T{}, min_(abs_(target - f) / slope, far));
  const auto along = [&](T m, T* value, T* at) {
    own_value(net, d, own, sign * m, value, at);
    *value = sign * *value;
  };
  const T m = find_root<V>(sign * target, T{}, far, first, along, MiddleOfLogs<S>());
  T root = sign * m;
  settle(net, d, own, root, in, &f, log_slope);
  // Where Newton's method would not stay, for want of a slope, there may be no root.
  const T missing = sign * (target - f), reach = m * exp_(*log_slope);
  const auto doubtful = (missing > S(0)) & (S(64) * Bracket<V>::kUlp * reach < missing);
  auto none = doubtful & !doubtful;
  if (any_(doubtful)) {
    T reached, at;
    along(far, &reached, &at);
    none = doubtful & (reached < sign * target);
    root = select(none, both<T>(S(__builtin_nanf(""))), root);
  }
  // A plateau: m is any of its points, and the search took what was no nearer for roundings at the root.
  const auto flat = (reach <= abs_(missing)) & (m > S(0)) & !none;
  if (any_(flat)) root = select(flat, sign * first_root<S>(sign * target, m, missing, along), root);
  if (any_(none) || any_(flat)) settle(net, d, own, root, in, &f, log_slope);
  return root;
}

// x of the y that lies in tile.y, feature after feature.
template <class S>
void inverse_rows(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile, const Own<S>& own) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t D = a.features;
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, D, nullptr, D, tile.y);
  LadjSum<T> ladj[kMaxRowBlocks];
  for (int64_t d = 0; d < D; ++d)  // a feature's weights are read once for all row blocks
    for (int64_t s = 0; s < rows.blocks<S>(); ++s) {
      S* in[kMaxLayers];
      for (int k = 0; k < a.n; ++k) {
        const Blocks<S>& b = net.blocks[k];
        in[k] = tile.in[k] + s * in_width<S>(a, k) * R;
        const S* const bias = static_cast<const S*>(b.layer->bias) + d * b.after();
        products(b.weight + d * b.after() * b.n_in, 1, b.n_in, in[k], d * b.before(), b.after(),
                 [&](int64_t i, T sum) { store_pair(own.constant[k] + i * R, sum + bias[i]); });
      }
      T log_slope;
      S* const at = tile.y + (s * D + d) * R;
      store_pair(at, own_root(net, d, own, load_pair(at), in, &log_slope));
      ladj[s].add(-log_slope);
    }
  for (int64_t s = 0; s < rows.blocks<S>(); ++s) store_ladj<S>(a, rows, s, ladj[s]);
  store_row_blocks(rows, tile.y, D, nullptr, D, static_cast<S*>(a.y), tile.spare);
}

// ---- backward ----

// The gradients of the layers' z, and of what was given, which is tile.y: from that of x in tile.y and, in g, what the
// logarithms of slopes add to z. The last feature depends on all others and none on it: so from the last to the first,
// each a linear equation of one number.
template <class S>
void solve_block_back(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile, const Own<S>& own) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t D = a.features;
  for (int64_t d = D - 1; d >= 0; --d)
    for (int64_t s = 0; s < rows.blocks<S>(); ++s) {
      S *g[kMaxLayers], *z[kMaxLayers];
      for (int k = 0; k < a.n; ++k) {
        const Blocks<S>& b = net.blocks[k];
        g[k] = tile.g[k] + s * out_width<S>(a, k) * R;
        z[k] = tile.z[k] + s * out_width<S>(a, k) * R;
        const int64_t behind = (d + 1) * b.after();
        products(b.weight + behind * b.n_in + d * b.before(), b.n_in, 1, g[k] + behind * R, b.n_out - behind,
                 b.before(), [&](int64_t j, T sum) { store_pair(own.g[k] + j * R, sum); });
      }
      // Through the feature's own layers, from a gradient of its last z; beside what is known, and then into g with
      // `keep`.
      const auto through = [&](T of_last, bool known, bool keep) {
        store_pair(own.h[a.n % 2], of_last);
        for (int k = a.n - 1; k >= 0; --k) {
          const Blocks<S>& b = net.blocks[k];
          S* const to = own.h[k % 2];
          products(b.own(d, 0), b.n_in, 1, own.h[(k + 1) % 2], b.after(), b.before(), [&](int64_t j, T sum) {
            if (known) sum = sum + load_pair(own.g[k] + j * R);
            if (k > 0) {
              const int64_t at = (d * b.before() + j) * R;
              sum = sum * with_slope(a.activation, load_pair(z[k - 1] + at)).slope;
              if (known) sum = sum + load_pair(g[k - 1] + at);
              if (keep) store_pair(g[k - 1] + at, sum);
            }
            store_pair(to + j * R, sum);
          });
        }
        return load_pair(own.h[0]);
      };
      S* const at = tile.y + (s * D + d) * R;
      const T log_slope = net.residual.log_slope(load_pair(tile.f_logs + (s * D + d) * R));
      T of_y = load_pair(at) + through(T{}, true, false);
      if (a.eps == 0) {
        of_y = of_y * exp_(-log_slope);
      } else {  // ladj's slope is not quite y's
        const T of_f = net.residual.passed * through(both<T>(S(1)), false, false);
        of_y = of_y / (a.residual == BlockResidual::none ? of_f : of_f + net.residual.kept);
      }
      const T of_last = -(net.residual.passed * of_y);
      store_pair(g[a.n - 1] + d * R, of_last);
      through(of_last, true, true);
      store_pair(at, of_y);
    }
}

template <class S>
void inverse_rows_back(const BlockNet<S>& net, const RowTile& rows, const BlockTile<S>& tile, const Own<S>& own,
                       const Sums<S>* sums, int part, double* gate) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const BlockArgs& a = net.args;
  const int64_t D = a.features, blocks = rows.blocks<S>(), x_width = in_width<S>(a, 0);
  load_row_blocks(rows, static_cast<const S*>(a.y), D, D, nullptr, x_width, tile.in[0]);
  forward_block_tile(net, rows, tile);
  // ladj of the inverse is less that of the map at x.
  back_through_logs(net, rows, tile, part, S(-1));
  if (a.grad_y) {
    load_row_blocks(rows, static_cast<const S*>(a.grad_y), D, D, nullptr, D, tile.y);
    clear_past_end(rows, D, tile.y);
  } else {
    memset(tile.y, 0, size_t(blocks * D * R) * sizeof(S));
  }
  solve_block_back(net, rows, tile, own);
  for (int64_t s = 0; a.grad_gate && s < blocks; ++s) {
    const T of_gate =
        gate_gradient(net, tile, s, tile.in[0] + s * x_width * R, tile.y + s * D * R, load_grad_ladj<S>(a, rows, s));
    *gate -= double(sum_lanes(of_gate.a)) + double(sum_lanes(of_gate.b));
  }
  for (int k = 0; k < a.n; ++k) add_weights(net, rows, tile, sums, k);
  if (a.grad_x) store_row_blocks(rows, tile.y, D, nullptr, D, static_cast<S*>(a.grad_x), tile.spare);
}

}  // namespace fk::FK_ISA
