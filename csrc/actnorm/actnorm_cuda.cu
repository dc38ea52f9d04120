// Actnorm on a GPU: one launch forward, one backward that also sums over pixels, slice by slice, and one that adds the
// slices up. A thread takes 16 bytes' worth of neighbours, pixels of a plane or channels of a row.
#include "../common/channel_ladj.cuh"
#include "../common/divide.cuh"
#include "../common/launch.cuh"
#include "../common/storage.cuh"
#include "actnorm.h"

namespace fk {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Terms of a chain of S sums; what follows is summed in double.
constexpr int kChain = 32;

// y = (x - before) scale + after of one channel.
template <class S>
struct Map {
  S scale, before, after;

  Map() = default;
  __device__ __forceinline__ Map(const ActNormArgs& a, int64_t c) {
    const S log_scale = static_cast<const S*>(a.log_scale)[c], shift = static_cast<const S*>(a.shift)[c];
    scale = exp_(a.inverse ? -log_scale : log_scale);
    before = a.inverse ? shift : S(0);
    after = a.inverse ? S(0) : shift;
  }
};

// Lines of memory, planes or rows, and how they are cut: `width` elements each, kVector at a time.
struct Walk {
  bool rows, vectors;
  int64_t lines, width, steps;  // steps of a line
  Divisor per_line, channels;

  template <class S>
  static Walk of(const ActNormArgs& a) {
    constexpr int N = kVector<S>;
    Walk w = {};
    w.rows = a.by_rows();
    w.lines = a.images * (w.rows ? a.pixels : a.channels);
    w.width = w.rows ? a.channels : a.pixels;
    w.steps = (w.width + N - 1) / N;
    w.per_line = Divisor(w.steps);
    w.channels = Divisor(a.channels);
    w.vectors = w.width % N == 0;
    for (const Channels* t : {&a.x, &a.y, &a.grad_y, &a.grad_x}) {
      const bool even = w.rows ? t->pixel % N == 0 : t->channel % N == 0 && t->image % N == 0;
      if (t->data) w.vectors &= even && reinterpret_cast<uintptr_t>(t->data) % uintptr_t(N * bytes_of(a.type)) == 0;
    }
    return w;
  }
  __device__ __forceinline__ int64_t offset(const Channels& t, int64_t image, int64_t line, int64_t at) const {
    return rows ? line * t.pixel + at : image * t.image + line * t.channel + at;
  }
};

// Up to N neighbours; those past the end of the line are 0.
template <class S, int N>
__device__ __forceinline__ void read(const Walk& w, DType type, const void* p, int64_t i, int n, S* v) {
  if (w.vectors) return load_vector(type, p, i, v);
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] = k < n ? load<S>(type, p, i + k) : S(0);
}
template <class S, int N>
__device__ __forceinline__ void write(const Walk& w, DType type, void* p, int64_t i, int n, const S* v) {
  if (w.vectors) return store_vector(type, p, i, v);
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (k < n) store(type, p, i + k, v[k]);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    actnorm_fwd_kernel(const __grid_constant__ ActNormArgs a, const __grid_constant__ Walk w) {
  constexpr int N = kVector<S>;
  fill_ladj<S>(a, [&](int64_t c) { return static_cast<const S*>(a.log_scale)[c]; });
  const int64_t all = w.lines * w.steps, threads = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < all; i += threads) {
    int64_t at = i, line = w.per_line.split(at), image = 0;
    at *= N;
    if (!w.rows) image = w.channels.split(line);
    const int n = int(w.width - at < N ? w.width - at : N);
    S v[N];
    read<S, N>(w, a.type, a.x.data, w.offset(a.x, image, line, at), n, v);
    Map<S> map(a, w.rows ? at : line);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (w.rows && k > 0 && k < n) map = Map<S>(a, at + k);
      v[k] = (v[k] - map.before) * map.scale + map.after;
    }
    write<S, N>(w, a.type, a.y.data, w.offset(a.y, image, line, at), n, v);
  }
}

// Sums over pixels of g and of g (x - before).
template <class S>
struct Sums {
  S g = 0, gx = 0;
  double total_g = 0, total_gx = 0;

  __device__ __forceinline__ void add(S grad, S x) {
    g += grad;
    gx += grad * x;
  }
  __device__ __forceinline__ void flush() {
    total_g += double(g);
    total_gx += double(gx);
    g = gx = 0;
  }
};

// One step of a line: grad_x, and the sums; of a plane all N go to the first.
template <class S, int N, bool Rows>
__device__ __forceinline__ void backward_step(const ActNormArgs& a, const Walk& w, int64_t image, int64_t line,
                                              int64_t at, const Map<S>* maps, Sums<S>* sums) {
  const int n = int(w.width - at < N ? w.width - at : N);
  S x[N], g[N], grad_x[N];
  read<S, N>(w, a.type, a.x.data, w.offset(a.x, image, line, at), n, x);
  read<S, N>(w, a.type, a.grad_y.data, w.offset(a.grad_y, image, line, at), n, g);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const Map<S>& map = maps[Rows ? k : 0];
    grad_x[k] = g[k] * map.scale;
    sums[Rows ? k : 0].add(g[k], x[k] - map.before);  // past the end of a line g is 0
  }
  if (a.grad_x.data) write<S, N>(w, a.type, a.grad_x.data, w.offset(a.grad_x, image, line, at), n, grad_x);
}

// A slice of the pixels of a plane's channel, or of `columns` steps of rows. sums: [slices][g: C, g x: C, ladj] or
// null.
template <class S, bool Rows>
__global__ void __launch_bounds__(kThreads, 2)
    actnorm_bwd_kernel(const __grid_constant__ ActNormArgs a, const __grid_constant__ Walk w, double* sums,
                       int64_t slices, int columns) {
  constexpr int N = kVector<S>;
  __shared__ double partial[2][kThreads * N];
  const int64_t slice = blockIdx.x % slices, part = blockIdx.x / slices, C = a.channels;
  double* const out = sums + slice * (2 * C + 1);
  if constexpr (Rows) {
    const int lanes = kThreads / columns, lane = int(threadIdx.x) / columns, column = int(threadIdx.x) % columns;
    const int64_t at = (part * columns + column) * N;
    Sums<S> own[N];
    if (lane < lanes && at < C) {
      Map<S> maps[N];
#pragma unroll
      for (int k = 0; k < N; ++k) maps[k] = Map<S>(a, at + k < C ? at + k : at);
      int chain = 0;
      for (int64_t row = slice * lanes + lane; row < w.lines; row += slices * lanes) {
        backward_step<S, N, true>(a, w, 0, row, at, maps, own);
        if (++chain % kChain == 0)
#pragma unroll
          for (int k = 0; k < N; ++k) own[k].flush();
      }
    }
    if (!sums) return;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      own[k].flush();
      partial[0][threadIdx.x * N + k] = own[k].total_g;
      partial[1][threadIdx.x * N + k] = own[k].total_gx;
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < columns * N; i += kThreads) {
      const int64_t c = part * columns * N + i;
      if (c >= C) break;
      double g = 0, gx = 0;
      for (int l = 0; l < lanes; ++l) {
        g += partial[0][l * columns * N + i];
        gx += partial[1][l * columns * N + i];
      }
      out[c] = g;
      out[C + c] = gx;
    }
    __syncthreads();
  } else {
    const Map<S> map(a, part);
    Sums<S> own;
    int chain = 0;
    const int64_t all = a.images * w.steps;
    for (int64_t i = slice * kThreads + threadIdx.x; i < all; i += slices * kThreads) {
      int64_t at = i;
      const int64_t image = w.per_line.split(at);
      backward_step<S, N, false>(a, w, image, part, at * N, &map, &own);
      if (++chain % (kChain / N) == 0) own.flush();
    }
    if (!sums) return;
    own.flush();
    const double g = sum_block(own.total_g, partial[0]), gx = sum_block(own.total_gx, partial[0]);
    if (threadIdx.x == 0) {
      out[part] = g;
      out[C + part] = gx;
    }
  }
  if (part == 0) {
    const double of_ladj = sum_of_ladj_gradient<S>(a, slice, slices, partial[0]);
    if (threadIdx.x == 0) out[2 * C] = of_ladj;
  }
}

// A warp adds up the slices of a channel.
template <class S>
__global__ void __launch_bounds__(kThreads)
    actnorm_sums_kernel(const __grid_constant__ ActNormArgs a, const double* sums, int64_t slices) {
  const int64_t C = a.channels, c = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (c >= C) return;
  double g = 0, gx = 0, of_ladj = 0;
#pragma unroll 1  // at most 16 turns; unrolled, ptxas spills
  for (int64_t s = threadIdx.x % 32; s < slices; s += 32) {
    const double* const from = sums + s * (2 * C + 1);
    g += from[c];
    gx += from[C + c];
    of_ladj += from[2 * C];
  }
  g = sum_lanes(g, 32);
  gx = sum_lanes(gx, 32);
  of_ladj = sum_lanes(of_ladj, 32) * double(a.ladj_pixels);
  if (threadIdx.x % 32) return;
  const double scale = double(Map<S>(a, c).scale);
  if (a.grad_shift) static_cast<S*>(a.grad_shift)[c] = S(a.inverse ? -scale * g : g);
  if (a.grad_log_scale)
    static_cast<S*>(a.grad_log_scale)[c] = S(a.inverse ? -scale * gx - of_ladj : scale * gx + of_ladj);
}

template <class S>
void run_fwd(const ActNormArgs& a, const CudaStream& on) {
  const Walk w = Walk::of<S>(a);
  const int64_t all = w.lines * w.steps, most = all > a.ladj_count ? all : a.ladj_count;
  launch(on, grid_of((most + kThreads - 1) / kThreads), kThreads, 0, actnorm_fwd_kernel<S>, a, w);
}

template <class S>
void run_bwd(const ActNormArgs& a, double* sums, int64_t slices, const CudaStream& on) {
  const Walk w = Walk::of<S>(a);
  const int columns = int(w.rows ? (w.steps < kThreads ? w.steps : kThreads) : 1);
  const int64_t parts = w.rows ? (w.steps + columns - 1) / columns : a.channels;
  launch(on, unsigned(parts * slices), kThreads, 0, w.rows ? actnorm_bwd_kernel<S, true> : actnorm_bwd_kernel<S, false>,
         a, w, sums, slices, columns);
  if (!sums) return;
  const int64_t per_block = kThreads / 32;
  launch(on, unsigned((a.channels + per_block - 1) / per_block), kThreads, 0, actnorm_sums_kernel<S>, a, sums, slices);
}

}  // namespace
}  // namespace cuda

void actnorm_fwd(const ActNormArgs& a, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run_fwd<decltype(s)>(a, on); });
}
void actnorm_bwd(const ActNormArgs& a, double* sums, int64_t slices, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run_bwd<decltype(s)>(a, sums, slices, on); });
}

}  // namespace fk
