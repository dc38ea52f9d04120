// Walks over the tensors of a call of a map's op on a GPU: one thread per element (row, feature). Params are rows of P
// numbers, so a warp fetches those of its elements together, in whole sectors, into shared memory, and every thread
// works on its own row there; backward leaves the row's gradient in its place and the warp stores them together. A
// block takes whole rows of features, so that ladj is summed in shared memory, in an order that the number of features
// alone decides. Included by <map>_cuda.cu, after its with_map.
#pragma once
#include "../common/divide.cuh"
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "../common/storage.cuh"
#include "map_args.h"

namespace fk::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
// Elements whose ladj a block keeps; longer rows are summed on the way.
constexpr int kGroup = 512, kSmallGroup = 128;
constexpr int64_t kManyElements = int64_t(1) << 18;  // from which blocks take large groups
constexpr size_t kDynamicBytes = 43 << 10;           // of shared memory, which every GPU gives unasked
constexpr int kElements = 32;                        // of a warp at a time

struct Call {
  int ndim;
  Divisor size[LeadingDims::kMaxDims];
  int64_t x_row[LeadingDims::kMaxDims], params_row[LeadingDims::kMaxDims];
  int64_t rows, rows_per_block, x_stride, params_stride;
  Divisor features;
  int64_t D;
  int log_lanes;                    // log2 of how many lanes share a row's ladj
  int P, pitch, lanes, warp_words;  // params, the distance of rows in shared memory, elements and memory of a warp
  unsigned per_param;               // 2^32 / P and a little: its high word times n is n / P for n up to 2^32 / P
  int room;                         // numbers that the map needs beside an element's params
  bool even, flat_in, flat_out;
  DType x_type, params_type;
  MapArgs a;
};

struct Place {
  int64_t row, x, params;  // row of ladj, offsets of x and of the params
};

__device__ __forceinline__ Place place(const Call& c, int64_t element) {
  int64_t d = element, row = c.features.split(d);
  Place p = {row, element, element * c.params_stride};
  if (c.even) return p;
  p.x = d * c.x_stride;
  p.params = d * c.params_stride;
  int64_t rest = row;
  for (int i = c.ndim - 1; i >= 0; --i) {
    int64_t index = rest;
    rest = i > 0 ? c.size[i].split(index) : 0;
    p.x += index * c.x_row[i];
    p.params += index * c.params_row[i];
  }
  return p;
}

// ---- params between memory and the warp's rows in shared memory ----

// Rows that lie without gaps on both sides: 16 bytes' worth of S at a time. Of an odd number of params they begin in
// shared memory where they do in memory, within a vector; of an even number there is one more between them.
template <class S>
__device__ __forceinline__ int shift_of(const Call& c, int64_t first) {
  return c.pitch == c.P ? int(first * c.P % kVector<S>) : 0;
}
__device__ __forceinline__ int padded(const Call& c, int n) {
  return n + (c.pitch == c.P ? 0 : int(__umulhi(unsigned(n), c.per_param)));
}
// Of n rows from `first` on: whole(i, k) of every vector at i in memory, whose numbers are k, k + 1 … of the rows, and
// number(i, k) of every number of the vectors that they share with others.
template <class S, class Vectors, class Numbers>
__device__ __forceinline__ void each_vector(const Call& c, int64_t first, int n, int lane, const Vectors& whole,
                                            const Numbers& number) {
  constexpr int V = kVector<S>;
  const int64_t begin = first * c.P, base = begin / V * V;
  const int before = int(begin - base), end = before + n * c.P;  // from base on, in 32 bits
  for (int w = lane * V; w < end; w += 32 * V) {
    if (w >= before && w + V <= end)
      whole(base + w, w - before);
    else
      for (int j = w < before ? before : w; j < w + V && j < end; ++j) number(base + j, j - before);
  }
}
template <class S>
__device__ __forceinline__ void fetch_flat(const Call& c, int64_t first, int n, S* rows, int lane) {
  constexpr int V = kVector<S>;
  constexpr DType own = sizeof(S) == 8 ? DType::f64 : DType::f32;
  S* const to = rows + shift_of<S>(c, first);
  each_vector<S>(
      c, first, n, lane,
      [&](int64_t i, int k) {
        S v[V];
        load_vector(c.params_type, c.a.params, i, v);
        if (c.pitch == c.P) return store_vector(own, to, k, v);
#pragma unroll
        for (int j = 0; j < V; ++j) to[padded(c, k + j)] = v[j];
      },
      [&](int64_t i, int k) { to[padded(c, k)] = load<S>(c.params_type, c.a.params, i); });
}
template <class S>
__device__ __forceinline__ void put_flat(const Call& c, int64_t first, int n, const S* rows, int lane) {
  constexpr int V = kVector<S>;
  constexpr DType own = sizeof(S) == 8 ? DType::f64 : DType::f32;
  const S* const from = rows + shift_of<S>(c, first);
  each_vector<S>(
      c, first, n, lane,
      [&](int64_t i, int k) {
        S v[V];
        if (c.pitch == c.P) {
          load_vector(own, from, k, v);
        } else {
#pragma unroll
          for (int j = 0; j < V; ++j) v[j] = from[padded(c, k + j)];
        }
        store_vector(c.params_type, c.a.grad_params, i, v);
      },
      [&](int64_t i, int k) { store(c.params_type, c.a.grad_params, i, from[padded(c, k)]); });
}

// Row after row, which may lie anywhere: `at`, of the lane's own row.
template <class S>
__device__ __forceinline__ void fetch_rows(const Call& c, int64_t at, int n, S* rows, int lane) {
  for (int r = 0; r < n; ++r) {
    const int64_t from = __shfl_sync(0xffffffffu, at, r);
    for (int p = lane; p < c.P; p += 32) rows[r * c.pitch + p] = load<S>(c.params_type, c.a.params, from + p);
  }
}
template <class S>
__device__ __forceinline__ void put_rows(const Call& c, int64_t first, int n, const S* rows, int lane) {
  for (int r = 0; r < n; ++r)
    for (int p = lane; p < c.P; p += 32)
      store(c.params_type, c.a.grad_params, (first + r) * c.P + p, rows[r * c.pitch + p]);
}

// ---- a block ----

// ladj of a row from what its threads have of it. The whole block takes part.
template <class S>
__device__ __forceinline__ void sum_long_row(const Call& c, double total, int64_t row) {
  __shared__ double partial[kWarps];
  const double sum = sum_block(total, partial);
  if (threadIdx.x == 0) static_cast<S*>(c.a.ladj)[row] = S(sum);
}

// ladj of rows r0 to r1 from those of their elements. The whole block takes part.
template <class S>
__device__ __forceinline__ void sum_rows(const Call& c, const S* ladjs, int64_t r0, int64_t r1) {
  const int group = 1 << c.log_lanes, lane = int(threadIdx.x) & (group - 1), rows = kThreads >> c.log_lanes;
  const int n = int(r1 - r0), D = int(c.D);
  S* const ladj = static_cast<S*>(c.a.ladj) + r0;
  __syncthreads();
  for (int first = 0; first < n; first += rows) {
    const int row = first + (int(threadIdx.x) >> c.log_lanes);
    double sum = 0;
    if (row < n)
      for (int d = lane; d < D; d += group) sum += ladjs[row * D + d];
    sum = sum_lanes(sum, group);
    if (row < n && lane == 0) ladj[row] = S(sum);
  }
  __syncthreads();  // before the next ladjs
}

// Map: what map_cuda.cuh calls.
template <class S, class Map, bool Backward>
__global__ void __launch_bounds__(kThreads, Backward && sizeof(S) == 8 ? 3 : 4)
    walk_kernel(const __grid_constant__ Map map, const __grid_constant__ Call call) {
  FK_DYNAMIC_SHARED(bytes);
  __shared__ S ladjs[kGroup];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  S* const rows = reinterpret_cast<S*>(bytes) + warp * call.warp_words;
  S* const room = rows + call.warp_words - call.room * call.lanes + lane;
  const MapArgs& a = call.a;
  const int64_t D = call.D;
  const bool long_row = D > kGroup;

  for (int64_t r0 = int64_t(blockIdx.x) * call.rows_per_block; r0 < call.rows;
       r0 += int64_t(gridDim.x) * call.rows_per_block) {
    const int64_t r1 = r0 + call.rows_per_block < call.rows ? r0 + call.rows_per_block : call.rows, end = r1 * D;
    double total = 0;
    for (int64_t e0 = r0 * D + warp * call.lanes; e0 < end; e0 += kWarps * call.lanes) {
      const int n = end - e0 < call.lanes ? int(end - e0) : call.lanes;
      const bool busy = lane < n;
      const int64_t e = e0 + (busy ? lane : 0);
      const Place at = place(call, e);
      const S v = load<S>(call.x_type, a.x, at.x);
      S g_out = 0, g_ladj = 0;
      if (Backward && a.grad_y) g_out = load<S>(call.x_type, a.grad_y, e);
      if (Backward && a.grad_ladj) g_ladj = static_cast<const S*>(a.grad_ladj)[at.row];
      if (call.flat_in)
        fetch_flat(call, e0, n, rows, lane);
      else
        fetch_rows(call, at.params, n, rows, lane);
      __syncwarp();
      const int shift = call.flat_in ? shift_of<S>(call, e0) : 0;
      S* const row = rows + shift + lane * call.pitch;
      if (busy) {
        if constexpr (Backward) {
          store(call.x_type, a.grad_x, e, map.grad(row, room, call.lanes, v, g_out, g_ladj));
        } else {
          S out, ladj;
          map(row, room, call.lanes, v, &out, &ladj);
          store(call.x_type, a.y, e, out);
          if (long_row)
            total += ladj;
          else
            ladjs[e - r0 * D] = ladj;
        }
      }
      __syncwarp();
      if constexpr (Backward) {
        if (call.flat_out)
          put_flat(call, e0, n, rows, lane);
        else
          put_rows(call, e0, n, rows + shift, lane);
        __syncwarp();  // before the next rows
      }
    }
    if constexpr (!Backward) {
      if (long_row)
        sum_long_row<S>(call, total, r0);
      else
        sum_rows(call, ladjs, r0, r1);
    }
  }
}

// ---- on the host ----

// What a launch is told of a call of a map of P params.
inline Call walk_call(const MapArgs& a, int P) {
  Call c = {};
  c.a = a;
  c.ndim = a.rows.ndim;
  for (int i = 0; i < c.ndim; ++i) {
    c.size[i] = Divisor(a.rows.size[i]);
    c.x_row[i] = a.rows.stride_a[i];
    c.params_row[i] = a.rows.stride_b[i];
  }
  c.rows = a.rows.count();
  c.D = a.features;
  c.features = Divisor(a.features);
  c.x_stride = a.x_stride, c.params_stride = a.params_stride;
  c.x_type = a.x_type, c.params_type = a.params_type;
  c.P = P;
  c.pitch = c.P | 1;  // rows begin in different banks
  c.even = a.evenly_spaced();
  const uintptr_t vector =
      uintptr_t((a.x_type == DType::f64 ? kVector<double> : kVector<float>)*bytes_of(a.params_type));
  c.per_param = unsigned((int64_t(1) << 32) / c.P + 1);
  c.flat_in = c.even && c.params_stride == c.P && uintptr_t(a.params) % vector == 0;
  c.flat_out = c.flat_in && uintptr_t(a.grad_params) % vector == 0;
  const int group = c.rows * c.D < kManyElements ? kSmallGroup : kGroup;
  c.rows_per_block = c.D < group ? group / c.D : 1;
  while (c.log_lanes < 5 && int64_t(1) << c.log_lanes < c.D) ++c.log_lanes;
  return c;
}

inline unsigned walk_grid(const Call& c) { return grid_of((c.rows + c.rows_per_block - 1) / c.rows_per_block); }

// The map of every element; `room`: numbers that it needs beside its params.
template <class S, class Map>
void walk(const Map& map, int room, Call c, const CudaStream& on, bool backward) {
  // Room for the rows, wherever in a vector they begin, and for what the map needs. At least 2 lanes: whole vectors.
  constexpr int V = kVector<S>;
  const auto words = [&](int lanes) { return (lanes * c.pitch + 2 * V - 2) / V * V + room * lanes; };
  const auto bytes = [&](int lanes) { return sizeof(S) * size_t(kWarps * words(lanes)); };
  c.room = room;
  c.lanes = 32;
  while (c.lanes > 2 && bytes(c.lanes) > kDynamicBytes) c.lanes /= 2;
  c.warp_words = words(c.lanes);
  launch(on, walk_grid(c), kThreads, bytes(c.lanes), backward ? walk_kernel<S, Map, true> : walk_kernel<S, Map, false>,
         map, c);
}

// By with_map of the map's settings.
template <class Spec>
void walk_map(const Spec& spec, const MapArgs& a, const CudaStream& on, bool backward) {
  if (a.empty()) return;
  by_arithmetic(a.x_type, [&](auto s) {
    using S = decltype(s);
    with_map<S>(
        spec, [&](const auto& map) { walk<S>(map, shared_numbers(spec), walk_call(a, spec.params()), on, backward); });
  });
}

}  // namespace
}  // namespace fk::cuda
