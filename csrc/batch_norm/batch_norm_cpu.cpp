// SIMD loops of batch norm: lanes are columns. Two passes over the batch each way, one that adds up and one that maps;
// what torch does in two more, the activation, and its slope, is in the second.
//
// Rows are added up in groups that do not depend on the number of threads, and groups in order: equal bits on any.
#include <limits>

#include "../common/arena.h"
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "../common/parallel.h"
#include "../net/normal_cdf.h"

#include "../net/activation.h"
#include "batch_norm.h"

namespace fk::FK_ISA {
namespace {

constexpr int64_t kChain = 64;        // rows whose sums about their own mean stay in one chain of S
constexpr int64_t kShortChain = 8;    // the same of gradients, which cancel each other
constexpr int64_t kMostGroups = 256;  // of rows
constexpr int64_t kGrain = 16 << 10;  // elements worth a thread of their own
constexpr int kAtOnce = 4;            // vectors of columns whose sums are in registers

// The first n lanes; the others are 0.
template <class S>
FK_INLINE typename Simd<S>::V load_some(const S* p, int64_t n) {
  if (n >= kLanes<S>) return load<typename Simd<S>::V>(p);
  S lanes[kLanes<S>] = {};
  memcpy(lanes, p, size_t(n) * sizeof(S));
  return load<typename Simd<S>::V>(lanes);
}
template <class S>
FK_INLINE void store_some(S* p, typename Simd<S>::V v, int64_t n) {
  if (n >= kLanes<S>) return store(p, v);
  S lanes[kLanes<S>];
  store(lanes, v);
  memcpy(p, lanes, size_t(n) * sizeof(S));
}

struct Groups {
  int64_t rows, size, count, grain;

  explicit Groups(const BatchNormArgs& a) : rows(a.rows) {
    size = (rows + kMostGroups - 1) / kMostGroups;
    size = size < kChain ? kChain : size;
    count = (rows + size - 1) / size;
    grain = 1 + kGrain / (a.columns * size);
  }
  int64_t begin(int64_t g) const { return g * size; }
  int64_t end(int64_t g) const { return (g + 1) * size < rows ? (g + 1) * size : rows; }
};

// Sums of each group and column, and of each column; and numbers of each column for the second pass.
template <class S>
struct Room {
  int64_t columns;  // whole vectors
  double *first, *second, *third, *total[3];
  S* of_columns[5];

  Room(const BatchNormArgs& a, const Groups& groups, Arena& arena)
      : columns((a.columns + kLanes<S> - 1) / kLanes<S> * kLanes<S>) {
    first = arena.take<double>(size_t(groups.count * columns));
    second = arena.take<double>(size_t(groups.count * columns));
    third = arena.take<double>(size_t(groups.count * columns));
    for (double*& p : total) p = arena.take<double>(size_t(columns));
    for (S*& p : of_columns) p = arena.take<S>(size_t(columns));
    for (S* p : of_columns)
      for (int64_t j = a.columns; !arena.counts() && j < columns; ++j) p[j] = 0;
  }
};

template <bool Whole>
struct Vectors {
  static constexpr bool kWhole = Whole;  // none of the vectors of columns ends past the last column
};

// Calls f(group, rows [begin, end) of a chain, first column, Vectors) for all chains of each group.
template <class S, class F>
void for_chains(const BatchNormArgs& a, const Groups& groups, int64_t chain, int threads, const F& f) {
  parallel_for(groups.count, groups.grain, threads, [&](int64_t b, int64_t e) {
    for (int64_t g = b; g < e; ++g)
      for (int64_t row = groups.begin(g); row < groups.end(g); row += chain) {
        const int64_t end = row + chain < groups.end(g) ? row + chain : groups.end(g);
        int64_t j = 0;
        for (; j + kAtOnce * kLanes<S> <= a.columns; j += kAtOnce * kLanes<S>) f(g, row, end, j, Vectors<true>());
        for (; j < a.columns; j += kAtOnce * kLanes<S>) f(g, row, end, j, Vectors<false>());
      }
  });
}

// Calls f(at, lanes, column) for each vector of the batch.
template <class S, class F>
void for_vectors(const BatchNormArgs& a, int threads, const F& f) {
  parallel_for(a.rows, 1 + kGrain / a.columns, threads, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) {
      int64_t j = 0;
      for (; j + kLanes<S> <= a.columns; j += kLanes<S>) f(row * a.columns + j, kLanes<S>, j);
      if (j < a.columns) f(row * a.columns + j, a.columns - j, j);
    }
  });
}

// Adds up the first, second or third sums of all groups, in order.
template <class S>
double* totals(const Groups& groups, const Room<S>& room, int which) {
  const double* from = which == 0 ? room.first : which == 1 ? room.second : room.third;
  double* const to = room.total[which];
  memcpy(to, from, size_t(room.columns) * sizeof(double));
  for (int64_t g = 1; g < groups.count; ++g)
    for (int64_t j = 0; j < room.columns; ++j) to[j] += from[g * room.columns + j];
  return to;
}

// Of each group the mean times its rows, and the sum of squares about it.
template <class S>
void statistics(const BatchNormArgs& a, const Groups& groups, const Room<S>& room, int threads) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  const S* x = static_cast<const S*>(a.x);
  for_chains<S>(a, groups, kChain, threads, [&](int64_t g, int64_t begin, int64_t end, int64_t column, auto vectors) {
    constexpr bool kWhole = decltype(vectors)::kWhole;
    const auto each = [&](int64_t r, const auto& f) {
      for (int q = 0; q < kAtOnce; ++q) {
        const int64_t j = column + q * L;
        if (!kWhole && j >= a.columns) break;
        f(q, load_some(x + r * a.columns + j, kWhole ? L : a.columns - j));
      }
    };
    const int64_t n = end - begin, before = begin - groups.begin(g);
    const S by = S(1) / S(n);
    V mean[kAtOnce] = {}, rest[kAtOnce] = {}, squares[kAtOnce] = {};
    for (int64_t r = begin; r < end; ++r) each(r, [&](int q, V v) { mean[q] += v; });
    for (V& m : mean) m *= by;
    for (int64_t r = begin; r < end; ++r)
      each(r, [&](int q, V v) {
        const V d = v - mean[q];
        rest[q] += d;
        squares[q] += d * d;
      });
    // The chain joins those of its group before it: squares about the mean of both are its own, theirs, and what the
    // means' distance adds.
    const double rows = double(n), per_row = 1 / rows, between = rows * double(before) / double(before + n);
    const double per_before = before ? 1 / double(before) : 0;
    for (int q = 0; q < kAtOnce && column + q * L < a.columns; ++q) {
      double *const sum = room.first + g * room.columns + column + q * L, *const square = room.second +
                                                                                          g * room.columns + column +
                                                                                          q * L;
      for (int l = 0; l < L; ++l) {
        const double off = double(rest[q][l]) * per_row;  // what the chain's mean is off by
        const double own = double(mean[q][l]) + off, apart = own - sum[l] * per_before;
        const double about = double(squares[q][l]) - off * off * rows;
        square[l] = before ? square[l] + about + apart * apart * between : about;
        sum[l] = before ? sum[l] + own * rows : own * rows;
      }
    }
  });
  S *const mean_of = static_cast<S*>(a.mean), *const var = static_cast<S*>(a.var);
  const double per_row = 1 / double(a.rows);
  double* const mean = totals(groups, room, 0);
  for (int64_t j = 0; j < a.columns; ++j) mean[j] *= per_row;
  for (int64_t g = 0; g < groups.count; ++g) {
    const double rows = double(groups.end(g) - groups.begin(g)), per_own = 1 / rows;
    for (int64_t j = 0; j < a.columns; ++j) {
      const double apart = room.first[g * room.columns + j] * per_own - mean[j];
      room.second[g * room.columns + j] += apart * apart * rows;
    }
  }
  const double* const squares = totals(groups, room, 1);
  for (int64_t j = 0; j < a.columns; ++j) mean_of[j] = S(mean[j]), var[j] = S(squares[j] * per_row);
}

template <class S>
double per_deviation(const BatchNormArgs& a, int64_t j) {
  return 1 / __builtin_sqrt(double(static_cast<const S*>(a.var)[j]) + a.eps);
}

// A scale past the largest number is that: of a column that is the same in every row, 0 times it is 0.
template <class S>
S finite(double scale) {
  constexpr double most = std::numeric_limits<S>::max();
  return S(scale > most ? most : scale < -most ? -most : scale);
}

// y = act((x - mean) scale + shift): not x scale + shift, where a rounding of the shift would be in every row alike.
template <class S>
void scales(const BatchNormArgs& a, S* mean, S* scale, S* shift) {
  const S *weight = static_cast<const S*>(a.weight), *bias = static_cast<const S*>(a.bias);
  for (int64_t j = 0; j < a.columns; ++j) {
    mean[j] = static_cast<const S*>(a.mean)[j];
    scale[j] = finite<S>(double(weight[j]) * per_deviation<S>(a, j));
    shift[j] = bias[j];
  }
}

template <class S>
void fwd(const BatchNormArgs& a, int threads) {
  using V = typename Simd<S>::V;
  const Groups groups(a);
  const Room<S> room = in_scratch(Scratch::shared, [&](Arena& arena) { return Room<S>(a, groups, arena); });
  statistics<S>(a, groups, room, threads);
  S *const scale = room.of_columns[0], *const shift = room.of_columns[1], *const mean = room.of_columns[2];
  scales(a, mean, scale, shift);
  // What the mean lost when it was rounded goes into the shift.
  for (int64_t j = 0; j < a.columns; ++j)
    shift[j] = S(double(shift[j]) + (double(mean[j]) - room.total[0][j]) * double(scale[j]));
  const S* x = static_cast<const S*>(a.x);
  S* y = static_cast<S*>(a.y);
  for_vectors<S>(a, threads, [&](int64_t at, int64_t n, int64_t j) {
    const V v = (load_some(x + at, n) - load<V>(mean + j)) * load<V>(scale + j) + load<V>(shift + j);
    store_some(y + at, activate(a.activation, v), n);
  });
}

template <class S>
void bwd(const BatchNormArgs& a, int threads) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>;
  const Groups groups(a);
  const Room<S> room = in_scratch(Scratch::shared, [&](Arena& arena) { return Room<S>(a, groups, arena); });
  S *const scale = room.of_columns[0], *const shift = room.of_columns[1];
  S *const mean = room.of_columns[2], *const of_row = room.of_columns[3], *const slope = room.of_columns[4];
  scales(a, mean, scale, shift);
  const S *x = static_cast<const S*>(a.x), *y = static_cast<const S*>(a.y), *g = static_cast<const S*>(a.grad_y);
  const bool by_input = !from_output(a.activation);
  // The gradient of what the activation was given.
  const auto inner = [&](int64_t at, int64_t n, int64_t j, V of_x) {
    const V in = by_input ? (of_x - load<V>(mean + j)) * load<V>(scale + j) + load<V>(shift + j) : V{};
    return load_some(g + at, n) * activation_slope(a.activation, load_some(y + at, n), in);
  };
  memset(room.first, 0, size_t(groups.count * room.columns) * sizeof(double));
  memset(room.second, 0, size_t(groups.count * room.columns) * sizeof(double));
  memset(room.third, 0, size_t(groups.count * room.columns) * sizeof(double));
  for_chains<S>(a, groups, kShortChain, threads,
                [&](int64_t group, int64_t begin, int64_t end, int64_t column, auto vectors) {
                  constexpr bool kWhole = decltype(vectors)::kWhole;
                  V sum[kAtOnce] = {}, products[kAtOnce] = {}, off[kAtOnce] = {};
                  for (int64_t r = begin; r < end; ++r)
                    for (int q = 0; q < kAtOnce; ++q) {
                      const int64_t j = column + q * L, n = kWhole ? L : a.columns - j, at = r * a.columns + j;
                      if (!kWhole && n <= 0) break;
                      const V v = load_some(x + at, n), more = inner(at, n, j, v), apart = v - load<V>(mean + j);
                      sum[q] += more;
                      products[q] += more * apart;
                      off[q] += apart;
                    }
                  for (int q = 0; q < kAtOnce && column + q * L < a.columns; ++q)
                    for (int l = 0; l < L; ++l) {
                      const int64_t at = group * room.columns + column + q * L + l;
                      room.first[at] += double(sum[q][l]);
                      room.second[at] += double(products[q][l]);
                      room.third[at] += double(off[q][l]);
                    }
                });
  S *grad_x = static_cast<S*>(a.grad_x), *grad_weight = static_cast<S*>(a.grad_weight);
  S* const grad_bias = static_cast<S*>(a.grad_bias);
  const double *const sum = totals(groups, room, 0), *const products = totals(groups, room, 1),
                      *const off = totals(groups, room, 2);
  const double per_row = 1 / double(a.rows);
  for (int64_t j = 0; j < a.columns; ++j) {
    const double by = per_deviation<S>(a, j);
    if (grad_weight) grad_weight[j] = S(products[j] * by);
    if (grad_bias) grad_bias[j] = S(sum[j]);
    // grad_x = scale (g - mean of g - (x - mean) (mean of g (x - mean)) / (var + eps)). Its sum over the rows, which
    // layers before form, is 0: what is the same in each row makes it so, after the roundings of all others.
    slope[j] = products[j] == 0 ? S(0) : S(double(scale[j]) * products[j] * per_row * by * by);
    of_row[j] = S((double(slope[j]) * off[j] - double(scale[j]) * sum[j]) * per_row);
  }
  if (!grad_x) return;
  for_vectors<S>(a, threads, [&](int64_t at, int64_t n, int64_t j) {
    const V v = load_some(x + at, n), more = inner(at, n, j, v);
    const V rest = load<V>(of_row + j) - (v - load<V>(mean + j)) * load<V>(slope + j);
    store_some(grad_x + at, more * load<V>(scale + j) + rest, n);
  });
}

void fwd_any(const BatchNormArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const BatchNormArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<BatchNormArgs> batch_norm_kernels;
const Kernels<BatchNormArgs> batch_norm_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
