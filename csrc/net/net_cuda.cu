// Around the GPU library's products of masked layers: bias, residual and activation in one launch, its backward with
// the sums of the bias in another, weights put in the order of the degrees in a third. A thread takes 16 bytes' worth
// of columns.
#include "../common/divide.cuh"
#include "../common/launch.cuh"
#include "../common/storage.cuh"

#include "activation.h"
#include "epilogue.h"

namespace fk {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
// Terms of a chain of S sums; what follows is summed in double.
constexpr int kChain = 32;

struct Call {
  EpilogueArgs a;
  unsigned vectors;  // a bit per matrix: its rows may be read 16 bytes at a time
  Divisor steps;     // of a row

  template <class S>
  static Call of(const EpilogueArgs& a) {
    constexpr int N = kVector<S>;
    Call call = {a, 0, Divisor((a.columns + N - 1) / N)};
    const auto look = [&](const Matrix& m, int bit) {
      const bool even = !m.at && m.stride % N == 0 && reinterpret_cast<uintptr_t>(m.data) % (N * bytes_of(a.type)) == 0;
      if (even) call.vectors |= 1u << bit;
    };
    for (int i = 0; i < 4; ++i) look(a.operands[i], i);
    for (int i = 0; i < 2; ++i) look(a.outputs[i], 4 + i);
    return call;
  }
};

// n of N columns from c on; the others are 0.
template <class S, int N>
__device__ __forceinline__ void read(const Call& call, int i, int64_t row, int64_t c, int n, S* v) {
  const Matrix& m = call.a.operands[i];
  const int64_t at = row * m.stride;
  if (n == N && call.vectors >> i & 1) return load_vector(call.a.type, m.data, at + c, v);
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] = k < n ? load<S>(call.a.type, m.data, at + (m.at ? m.at[c + k] : c + k)) : S(0);
}

template <class S, int N>
__device__ __forceinline__ void write(const Call& call, int i, int64_t row, int64_t c, int n, const S* v) {
  const Matrix& m = call.a.outputs[i];
  const int64_t at = row * m.stride;
  if (n == N && call.vectors >> (4 + i) & 1) return store_vector(call.a.type, m.data, at + c, v);
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (k < n) store(call.a.type, m.data, at + (m.at ? m.at[c + k] : c + k), v[k]);
}

template <class S>
__global__ void __launch_bounds__(kThreads) epilogue_fwd_kernel(const __grid_constant__ Call call) {
  constexpr int N = kVector<S>;
  const EpilogueArgs& a = call.a;
  const int64_t all = a.rows * int64_t(call.steps.d), threads = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < all; i += threads) {
    int64_t c = i;
    const int64_t row = call.steps.split(c);
    c *= N;
    const int n = int(a.columns - c < N ? a.columns - c : N);
    S z[N], term[N];
    read<S, N>(call, 0, row, c, n, z);
#pragma unroll
    for (int t = 1; t < 4; ++t) {
      if (!a.operands[t].data) continue;
      read<S, N>(call, t, row, c, n, term);
#pragma unroll
      for (int k = 0; k < N; ++k) z[k] += term[k];
    }
    if (a.outputs[0].data) write<S, N>(call, 0, row, c, n, z);
    if (!a.outputs[1].data) continue;
#pragma unroll
    for (int k = 0; k < N; ++k) z[k] = activate(a.activation, z[k]);
    write<S, N>(call, 1, row, c, n, z);
  }
}

// A block: 32 steps of columns, every slices * kWarps-th row. A warp walks along a row.
template <class S>
__global__ void __launch_bounds__(kThreads, 2)
    epilogue_bwd_kernel(const __grid_constant__ Call call, double* sums, int64_t sums_columns, const int32_t* sums_at,
                        int64_t slices) {
  constexpr int N = kVector<S>;
  __shared__ double partial[kWarps][32 * N];
  const EpilogueArgs& a = call.a;
  const int64_t slice = blockIdx.x % slices, part = blockIdx.x / slices;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t c = (part * 32 + lane) * N, left = a.columns - c;
  const int n = int(left < 0 ? 0 : left < N ? left : N);
  S chain[N] = {};
  double total[N] = {};
  int terms = 0;
  if (n > 0) {
    for (int64_t row = slice * kWarps + warp; row < a.rows; row += slices * kWarps) {
      S g[N], other[N];
      read<S, N>(call, 0, row, c, n, g);
      if (a.operands[1].data) {
        read<S, N>(call, 1, row, c, n, other);
#pragma unroll
        for (int k = 0; k < N; ++k) g[k] *= activation_slope(a.activation, other[k], other[k]);
      }
      if (a.operands[2].data) {
        read<S, N>(call, 2, row, c, n, other);
#pragma unroll
        for (int k = 0; k < N; ++k) g[k] += other[k];
      }
      if (a.outputs[0].data) write<S, N>(call, 0, row, c, n, g);
#pragma unroll
      for (int k = 0; k < N; ++k) chain[k] += g[k];
      if (++terms % kChain == 0)
#pragma unroll
        for (int k = 0; k < N; ++k) total[k] += double(chain[k]), chain[k] = 0;
    }
  }
  if (!sums) return;
#pragma unroll
  for (int k = 0; k < N; ++k) partial[warp][lane * N + k] = total[k] + double(chain[k]);
  __syncthreads();
  if (warp > 0) return;
  for (int k = 0; k < n; ++k) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += partial[w][lane * N + k];
    sums[slice * sums_columns + (sums_at ? sums_at[c + k] : c + k)] = sum;
  }
}

// A block adds up the slices of 32 columns, a warp every kWarps-th slice.
template <class S>
__global__ void __launch_bounds__(kThreads)
    epilogue_sums_kernel(DType type, const double* sums, int64_t slices, int64_t columns, void* out) {
  __shared__ double partial[kWarps][32];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t c = int64_t(blockIdx.x) * 32 + lane;
  double sum = 0;
  if (c < columns)
    for (int64_t s = warp; s < slices; s += kWarps) sum += sums[s * columns + c];
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= columns) return;
  for (int w = 1; w < kWarps; ++w) sum += partial[w][lane];
  store(type, out, c, S(sum));
}

struct Packings {
  Packing layer[kMostPackings];
  int64_t units;  // of all layers
};

// A block per unit. Numbers are moved as they are, U being as wide.
template <class U>
__global__ void __launch_bounds__(kThreads) masked_pack_kernel(const __grid_constant__ Packings all, bool unpack) {
  for (int64_t block = blockIdx.x; block < all.units; block += gridDim.x) {
    int64_t unit = block;
    int i = 0;
    for (; unit >= all.layer[i].n_out; ++i) unit -= all.layer[i].n_out;
    const Packing& p = all.layer[i];
    U* const weight = static_cast<U*>(p.weight) + (p.row ? p.row[unit] : unit) * p.weight_stride;
    U* const packed = static_cast<U*>(p.packed) + unit * p.packed_stride;
    const int64_t limit = p.limit[unit], width = !unpack && p.width ? p.width[unit] : p.n_in;
    for (int64_t k = threadIdx.x; k < width; k += kThreads) {
      const bool seen = (p.rank ? p.rank[k] : k) < limit;
      U& theirs = weight[p.column ? p.column[k] : k];
      if (unpack)
        theirs = seen ? packed[k] : U(0);
      else
        packed[k] = seen ? theirs : U(0);
    }
  }
}

}  // namespace
}  // namespace cuda

void epilogue_fwd(const EpilogueArgs& a, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) {
    using S = decltype(s);
    const cuda::Call call = cuda::Call::of<S>(a);
    const int64_t all = a.rows * int64_t(call.steps.d);
    launch(on, grid_of((all + cuda::kThreads - 1) / cuda::kThreads), cuda::kThreads, 0, cuda::epilogue_fwd_kernel<S>,
           call);
  });
}

void epilogue_bwd(const EpilogueArgs& a, double* sums, int64_t sums_columns, const int32_t* sums_at, int64_t slices,
                  const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) {
    using S = decltype(s);
    const cuda::Call call = cuda::Call::of<S>(a);
    const int64_t parts = (int64_t(call.steps.d) + 31) / 32;
    launch(on, unsigned(parts * slices), cuda::kThreads, 0, cuda::epilogue_bwd_kernel<S>, call, sums, sums_columns,
           sums_at, slices);
  });
}

void epilogue_sums(DType type, const double* sums, int64_t slices, int64_t columns, void* out, const CudaStream& on) {
  cuda::by_arithmetic(type, [&](auto s) {
    launch(on, unsigned((columns + 31) / 32), cuda::kThreads, 0, cuda::epilogue_sums_kernel<decltype(s)>, type, sums,
           slices, columns, out);
  });
}

void masked_pack(DType type, bool unpack, const std::vector<Packing>& layers, const CudaStream& on) {
  for (size_t first = 0; first < layers.size(); first += kMostPackings) {
    cuda::Packings all = {};
    for (size_t i = first; i < layers.size() && i < first + kMostPackings; ++i) {
      all.layer[i - first] = layers[i];
      all.units += layers[i].n_out;
    }
    const auto kernel = cuda::bytes_of(type) == 8   ? cuda::masked_pack_kernel<uint64_t>
                        : cuda::bytes_of(type) == 4 ? cuda::masked_pack_kernel<uint32_t>
                                                    : cuda::masked_pack_kernel<uint16_t>;
    launch(on, grid_of(all.units), cuda::kThreads, 0, kernel, all, unpack);
  }
}

}  // namespace fk
