// A monotone network on a GPU: a block has the elements of one feature, 32 rows, one a lane, and what its layers make
// of them in shared memory, [unit][row]. Units are shared out to warps, kSide at a time; weights come through the
// caches, 16 bytes for a whole warp. Two blocks of these columns go through the layers together: two points of every
// element, or, of a positive network, its value and its slope.
#pragma once
#include "../common/storage.cuh"

#include "../net/activation.h"
#include "monotone_math.h"
#include "monotone_net.h"

namespace fk::cuda {

constexpr int kThreads = 128, kWarps = kThreads / 32, kRowsOfTile = 32;
// The distance of units in shared memory: 16 bytes more than the rows, which spreads a column of units over the banks.
template <class S>
inline constexpr int kPitch = kRowsOfTile + kVector<S>;
// Units that a warp computes side by side.
template <class S>
inline constexpr int kSide = 2 * kVector<S>;
constexpr int kPadding = 8;  // of widths: kSide of floats
template <class S>
inline constexpr DType kPlain = sizeof(S) == 8 ? DType::f64 : DType::f32;

// A layer; of the first n_in is the signal's, of the last n_out is 1. Places in the `packed` numbers of a set, and in
// the sums of its gradients: weights as their owner keeps them, then biases.
struct MonotonePlace {
  int64_t n_in, n_out, stride, weight, bias, sums;
  int width, a, slope;  // rows of shared memory: of what it makes, [2][width], and of its slopes; -1: there are none
};

struct MonotonePlan {
  int n;
  bool positive, both;  // both: of the two blocks each is a value
  Activation activation;
  int64_t packed, sums, column;  // numbers of a set; the weights of x among the former
  int64_t rows;                  // of shared memory
  int seen, g_seen, columns;     // rows; columns: of both blocks what entered the net and the gradients of what left it
  MonotonePlace layer[kMaxMonotoneGpuLayers];
};

inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// widths: what enters each layer beside x, and 1.
inline MonotonePlan lay_out(const MonotoneSpec& spec, const int64_t* widths, int n, bool backward) {
  MonotonePlan p = {};
  p.n = n, p.positive = spec.positive, p.both = !spec.positive, p.activation = spec.activation;
  const auto rows = [&](int64_t count) {
    const int first = int(p.rows);
    p.rows += count;
    return first;
  };
  const auto numbers = [&](int64_t count) {
    const int64_t first = p.packed;
    p.packed += padded(count);
    return first;
  };
  const int64_t units = padded(widths[1]);
  int64_t widest = 0;
  for (int k = 1; k < n; ++k) widest = padded(widths[k]) > widest ? padded(widths[k]) : widest;
  p.seen = rows(units);
  p.column = numbers(widths[1]);
  const int turns[2] = {backward ? -1 : rows(2 * widest), backward || n < 3 ? -1 : rows(2 * widest)};
  for (int k = 0; k < n; ++k) {
    MonotonePlace& l = p.layer[k];
    l.n_in = widths[k], l.n_out = widths[k + 1], l.stride = padded(l.n_in);
    l.weight = numbers(l.stride * l.n_out), l.bias = numbers(l.n_out);
    l.sums = p.sums;
    p.sums += l.n_out * (l.n_in + (k == 0) + 1);
    if (k == n - 1) continue;
    l.width = int(padded(l.n_out));
    l.a = backward ? rows(2 * l.width) : turns[k % 2];
    const int slopes = !backward ? 0 : p.positive ? 1 : from_output(p.activation) ? 0 : 2;
    l.slope = slopes > 0 ? rows(slopes * l.width) : -1;
  }
  p.g_seen = backward ? rows(units) : -1;
  p.columns = backward ? rows(4) : -1;
  return p;
}

template <class S>
size_t shared_bytes(const MonotonePlan& p) {
  return size_t(p.rows) * kPitch<S> * sizeof(S);
}

// e^v - 1 below 0 by CUDA's own: activation.h's divides.
template <class S>
__device__ __forceinline__ S activated(Activation act, S v) {
  if (act == Activation::elu) return v > 0 ? v : sizeof(S) == 8 ? S(expm1(double(v))) : S(expm1f(float(v)));
  return activate(act, v);
}

// activation_slope of those that it follows from the output of.
template <class S>
__device__ __forceinline__ S slope_of_output(Activation act, S out) {
  if (act == Activation::tanh) return 1 - out * out;
  if (act == Activation::identity || out > 0) return S(1);
  return act == Activation::elu ? out + 1 : act == Activation::leaky_relu ? S(0.01) : S(0);
}

// The sum of a row over the lanes, each by its number of another row (null: 1).
template <class S>
__device__ __forceinline__ S sum_of_row(const S* a, const S* by) {
  constexpr int N = kVector<S>;
  S sum = 0;
  for (int l = 0; l < kRowsOfTile; l += N) {
    S v[N], w[N];
    load_vector(kPlain<S>, a, l, v);
    if (by) load_vector(kPlain<S>, by, l, w);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += by ? v[i] * w[i] : v[i];
  }
  return sum;
}

template <class S>
struct MonotoneNet {
  static constexpr int N = kVector<S>, kUnits = kSide<S>, P = kPitch<S>;
  const MonotonePlan& plan;
  const S* packed;  // of the feature's set
  S* shared;
  int lane, warp;

  __device__ __forceinline__ S* row(int64_t r) const { return shared + r * P; }
  __device__ __forceinline__ S& at(int64_t r) const { return row(r)[lane]; }
  __device__ __forceinline__ int thread() const { return warp * 32 + lane; }

  // ---- products ----

  // Adds to the sums of kUnits units from `first` on, in both blocks, `count` inputs from the weights' `from` on.
  __device__ __forceinline__ void products(const MonotonePlace& l, int64_t first, int64_t from, int count, const S* in0,
                                           const S* in1, S (&sum)[2][kUnits]) const {
    const S* const weight = packed + l.weight + from;
    const int chunks = count / N;
    for (int k = 0; k < chunks; ++k) {
      S a[2][N];
#pragma unroll
      for (int i = 0; i < N; ++i) a[0][i] = in0[(k * N + i) * P + lane], a[1][i] = in1[(k * N + i) * P + lane];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {  // those past the last are done for nothing
        S w[N];
        const int64_t unit = first + u < l.n_out ? first + u : l.n_out - 1;
        load_vector(kPlain<S>, weight, unit * l.stride + k * N, w);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[0][u] += w[i] * a[0][i], sum[1][u] += w[i] * a[1][i];
      }
    }
    for (int k = chunks * N; k < count; ++k) {
      const S a0 = in0[k * P + lane], a1 = in1[k * P + lane];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const S w = weight[(first + u < l.n_out ? first + u : l.n_out - 1) * l.stride + k];
        sum[0][u] += w * a0, sum[1][u] += w * a1;
      }
    }
  }
  // Of kUnits inputs from `first` on, from gradients of the units.
  __device__ __forceinline__ void products_back(const MonotonePlace& l, int64_t first, const S* g0, const S* g1,
                                                S (&sum)[2][kUnits]) const {
    const S* const weight = packed + l.weight + first;
    for (int64_t j = 0; j < l.n_out; ++j) {
      const S a0 = g0[j * P + lane], a1 = g1[j * P + lane];
#pragma unroll
      for (int u = 0; u < kUnits; u += N) {
        S w[N];
        load_vector(kPlain<S>, weight, j * l.stride + u, w);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[0][u + i] += w[i] * a0, sum[1][u + i] += w[i] * a1;
      }
    }
  }
  // Adds to sums[j][i], rows of them `stride` apart, what rows g[j] and in[i] of `blocks` blocks make together.
  __device__ __forceinline__ void outer(const S* g, int64_t g_block, int n_out, const S* in, int64_t in_block, int n_in,
                                        int blocks, double* sums, int64_t stride) const {
    constexpr int kCells = 4;
    const int across = (n_in + kCells - 1) / kCells, down = (n_out + kCells - 1) / kCells;
    for (int t = thread(); t < across * down; t += kThreads) {
      const int i0 = t % across, j0 = t / across;
      S total[kCells][kCells] = {};
      for (int b = 0; b < blocks; ++b) {
        const S *const gb = g + b * g_block * P, *const ab = in + b * in_block * P;
        for (int l = 0; l < kRowsOfTile; l += N) {
          S v[kCells][N], w[kCells][N];
#pragma unroll
          for (int m = 0; m < kCells; ++m) {
            const int j = j0 + m * down, i = i0 + m * across;
            load_vector(kPlain<S>, gb + (j < n_out ? j : 0) * P, l, v[m]);
            load_vector(kPlain<S>, ab + (i < n_in ? i : 0) * P, l, w[m]);
          }
#pragma unroll
          for (int m = 0; m < kCells; ++m)
#pragma unroll
            for (int q = 0; q < kCells; ++q)
#pragma unroll
              for (int i = 0; i < N; ++i) total[m][q] += v[m][i] * w[q][i];
        }
      }
#pragma unroll
      for (int m = 0; m < kCells; ++m)
#pragma unroll
        for (int q = 0; q < kCells; ++q) {
          const int j = j0 + m * down, i = i0 + q * across;
          if (j < n_out && i < n_in) sums[j * stride + i] += double(total[m][q]);
        }
    }
  }

  // ---- the signal, in the place of what the first layer makes ----

  __device__ __forceinline__ int signals_at_once() const { return 2 * plan.layer[0].width; }
  // Numbers `from` to `from` + `count` of the rows' signals, which lie `stride` apart; 0 past the last row.
  __device__ __forceinline__ void load_signal(const S* signal, int64_t stride, int rows, int64_t from,
                                              int count) const {
    __syncthreads();
    for (int t = thread(); t < count * kRowsOfTile; t += kThreads) {
      const int r = t / count, i = t % count;
      row(plan.layer[0].a + i)[r] = r < rows ? signal[r * stride + from + i] : S(0);
    }
    __syncthreads();
  }
  // The signal's half of the first layer.
  __device__ __forceinline__ void see(const S* signal, int64_t stride, int rows) const {
    const MonotonePlace& l = plan.layer[0];
    for (int64_t from = 0; from == 0 || from < l.n_in; from += signals_at_once()) {
      const int count = int(l.n_in - from < signals_at_once() ? l.n_in - from : signals_at_once());
      load_signal(signal, stride, rows, from, count);
      for (int64_t first = warp * kUnits; first < l.n_out; first += kWarps * kUnits) {
        S sum[2][kUnits] = {};
        products(l, first, from, count, row(l.a), row(l.a), sum);
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
          if (first + u < l.n_out) {
            S& seen = at(plan.seen + first + u);
            seen = (from == 0 ? packed[l.bias + first + u] : seen) + sum[0][u];
          }
      }
    }
  }

  // ---- forward ----

  // The net of two points, or at v0 of its value and, v1 being 1, its slope. All threads of a lane get both.
  __device__ __forceinline__ void run(S v0, S v1, S* u0, S* u1) const {
    const int n = plan.n;
    __syncthreads();  // what was there has been read
    for (int k = 0; k + 1 < n; ++k) {
      const MonotonePlace& l = plan.layer[k];
      for (int64_t first = warp * kUnits; first < l.n_out; first += kWarps * kUnits) {
        const int count = int(l.n_out - first < kUnits ? l.n_out - first : kUnits);
        if (k > 0) {
          const MonotonePlace& before = plan.layer[k - 1];
          S sum[2][kUnits] = {};
          products(l, first, 0, int(l.n_in), row(before.a), row(before.a + before.width), sum);
#pragma unroll
          for (int u = 0; u < kUnits; ++u) at(l.a + first + u) = sum[0][u], at(l.a + l.width + first + u) = sum[1][u];
        }
#pragma unroll 1
        for (int u = 0; u < count; ++u) {
          const int64_t j = first + u;
          if (k > 0) {
            const S bias = packed[l.bias + j];
            put(l, j, at(l.a + j) + bias, plan.both ? at(l.a + l.width + j) + bias : at(l.a + l.width + j));
          } else {
            const S seen = at(plan.seen + j), column = packed[plan.column + j];
            put(l, j, seen + v0 * column, plan.both ? seen + v1 * column : v1 * column);
          }
        }
      }
      __syncthreads();
    }
    const MonotonePlace &last = plan.layer[n - 1], &before = plan.layer[n - 2];
    const S bias = packed[last.bias];
    S sum0 = bias, sum1 = plan.both ? bias : S(0);
    for (int64_t j = 0; j < last.n_in; ++j) {
      const S w = packed[last.weight + j];
      sum0 += w * at(before.a + j), sum1 += w * at(before.a + before.width + j);
    }
    *u0 = sum0, *u1 = sum1;
  }

  // ---- backward ----

  __device__ __forceinline__ void clear() const {
    for (int64_t j = warp; j < plan.layer[0].n_out; j += kWarps) at(plan.g_seen + j) = 0;
  }

  // Behind run(), whose values it takes the place of: from the gradients of what that returned to those of what the
  // first layer saw of the signal, which add up, and to that of v0, which it returns; those of weights add to `sums`
  // (null: not wanted).
  __device__ __forceinline__ S back(S v0, S v1, S g0, S g1, double* sums) const {
    const int n = plan.n;
    const MonotonePlace& last = plan.layer[n - 1];
    S* const columns = row(plan.columns);
    if (sums) {
      __syncthreads();
      if (warp == 0) columns[lane] = v0, columns[P + lane] = v1, columns[2 * P + lane] = g0, columns[3 * P + lane] = g1;
      __syncthreads();
      add_rows(plan.layer[n - 2], int(last.n_in), columns + 2 * P, sums + last.sums);
      if (thread() == 0) {
        const S of_first = sum_of_row<S>(columns + 2 * P, nullptr);
        sums[last.sums + last.n_in] +=
            double(plan.both ? of_first + sum_of_row<S>(columns + 3 * P, nullptr) : of_first);
      }
    }
    __syncthreads();
    for (int64_t j = warp; j < last.n_in; j += kWarps) {
      const S w = packed[last.weight + j];
      put_back(plan.layer[n - 2], j, w * g0, w * g1);
    }
    __syncthreads();
    for (int k = n - 2; k > 0; --k) {
      const MonotonePlace &l = plan.layer[k], &before = plan.layer[k - 1];
      if (sums) {
        outer(row(l.a), l.width, int(l.n_out), row(before.a), before.width, int(l.n_in), 2, sums + l.sums, l.n_in);
        add_bias(l, sums + l.sums + l.n_out * l.n_in);
        __syncthreads();
      }
      for (int64_t first = warp * kUnits; first < l.n_in; first += kWarps * kUnits) {
        S sum[2][kUnits] = {};
        products_back(l, first, row(l.a), row(l.a + l.width), sum);
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
          if (first + u < l.n_in) put_back(before, first + u, sum[0][u], sum[1][u]);
      }
      __syncthreads();
    }
    const MonotonePlace& first = plan.layer[0];
    if (sums) add_rows(first, int(first.n_out), columns, sums + first.sums, first.n_in + 1);
    for (int64_t j = warp; j < first.n_out; j += kWarps) {
      const S g = at(first.a + j);
      at(plan.g_seen + j) += plan.both ? g + at(first.a + first.width + j) : g;
    }
    S g_v = 0;
    for (int64_t j = 0; j < first.n_out; ++j) g_v += packed[plan.column + j] * at(first.a + j);
    return g_v;
  }

  // Behind all back(): the gradients of the first layer's weights of the signal and of its biases.
  __device__ __forceinline__ void back_of_signal(const S* signal, int64_t stride, int rows, double* sums) const {
    const MonotonePlace& l = plan.layer[0];
    for (int64_t from = 0; from == 0 || from < l.n_in; from += signals_at_once()) {
      const int count = int(l.n_in - from < signals_at_once() ? l.n_in - from : signals_at_once());
      load_signal(signal, stride, rows, from, count);
      outer(row(plan.g_seen), 0, int(l.n_out), row(l.a), 0, count, 1, sums + l.sums + 1 + from, l.n_in + 1);
    }
    for (int64_t j = thread(); j < l.n_out; j += kThreads)
      sums[l.sums + l.n_out * (l.n_in + 1) + j] += double(sum_of_row<S>(row(plan.g_seen + j), nullptr));
  }

 private:
  // What unit j makes of z0 and z1.
  __device__ __forceinline__ void put(const MonotonePlace& l, int64_t j, S z0, S z1) const {
    const Activation act = plan.activation;
    const S a0 = activated(act, z0);
    S a1;
    if (plan.positive) {
      const S slope = tail_slope(act, a0, z0);
      a1 = slope * z1;
      if (l.slope >= 0) at(l.slope + j) = slope;
    } else {
      a1 = activated(act, z1);
      if (l.slope >= 0) {
        at(l.slope + j) = activation_slope(act, a0, z0);
        at(l.slope + l.width + j) = activation_slope(act, a1, z1);
      }
    }
    at(l.a + j) = a0, at(l.a + l.width + j) = a1;
  }
  // From gradients of what unit j made to those of z0 and z1, in the place of what it made.
  __device__ __forceinline__ void put_back(const MonotonePlace& l, int64_t j, S g0, S g1) const {
    const Activation act = plan.activation;
    S &a0 = at(l.a + j), &a1 = at(l.a + l.width + j);
    if (plan.positive) {
      const S slope = at(l.slope + j);
      a0 = slope * g0 + curvature(act, a0, S(1)) * a1 * g1;
      a1 = slope * g1;
    } else if (l.slope >= 0) {
      a0 = at(l.slope + j) * g0, a1 = at(l.slope + l.width + j) * g1;
    } else {
      a0 = slope_of_output(act, a0) * g0, a1 = slope_of_output(act, a1) * g1;
    }
  }
  // Sums of the layer's rows by two rows that lie one behind the other.
  __device__ __forceinline__ void add_rows(const MonotonePlace& l, int count, const S* by, double* sums,
                                           int64_t stride = 1) const {
    for (int j = thread(); j < count; j += kThreads)
      sums[j * stride] += double(sum_of_row<S>(row(l.a + j), by) + sum_of_row<S>(row(l.a + l.width + j), by + P));
  }
  __device__ __forceinline__ void add_bias(const MonotonePlace& l, double* sums) const {
    for (int j = thread(); j < int(l.n_out); j += kThreads) {
      const S of_first = sum_of_row<S>(row(l.a + j), nullptr);
      sums[j] += double(plan.both ? of_first + sum_of_row<S>(row(l.a + l.width + j), nullptr) : of_first);
    }
  }
};

}  // namespace fk::cuda
