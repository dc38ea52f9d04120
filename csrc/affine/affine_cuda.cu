// The affine map on a GPU. A row of the event belongs to a group of lanes, or to a whole block where it is long; each
// lane takes 16 bytes' worth of neighbouring elements at a time, so that ladj is the group's sum and needs no atomics.
// One kernel forward and one backward, whatever the strides: the nest of loops and what of it may be read 16 bytes at a
// time are worked out on the host.
#include "../common/divide.cuh"
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "../common/storage.cuh"
#include "affine.h"
#include "affine_math.h"

namespace fk {
namespace cuda {
namespace {

using A = AffineTensors;

constexpr int kThreads = 256;
constexpr int kMaxDims = 12;
// Steps of a warp from which a row is shared by a block.
constexpr int64_t kLongRow = 8;

// How a tensor's elements that a lane takes lie in memory.
enum class Lies : unsigned char { strided, dense, paired };  // paired: logit and shift alternate

struct Call {
  int ndim;
  Divisor size[kMaxDims];  // not of the outermost loop
  int64_t stride[kMaxDims][A::count];
  int64_t rows, event;
  DType x_type, params_type;
  void* data[A::count];
  Lies lies[A::count];
  bool shift_first;  // of pairs
  int log_group;     // log2 of the threads of a row
  void* ladj;
  AffinePass pass;  // row, begin and end in words
  int word;         // bytes of one
};

// Where every tensor's element of this number lies.
__device__ __forceinline__ void place(const Call& c, int64_t element, int64_t (&at)[A::count]) {
#pragma unroll
  for (int k = 0; k < A::count; ++k) at[k] = 0;
  for (int d = c.ndim - 1; d >= 0; --d) {
    int64_t index = element;
    if (d > 0) element = c.size[d].split(index);
#pragma unroll
    for (int k = 0; k < A::count; ++k) at[k] += index * c.stride[d][k];
  }
}

// N neighbouring elements of the innermost loop.
template <class S, int N>
__device__ __forceinline__ void read(const Call& c, int k, int64_t at, S* v) {
  const DType type = k == A::u || k == A::t ? c.params_type : c.x_type;
  if constexpr (N > 1) {
    if (c.lies[k] == Lies::dense) return load_vector(type, c.data[k], at, v);
  }
  const int64_t step = c.stride[c.ndim - 1][k];
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = load<S>(type, c.data[k], at + i * step);
}
template <class S, int N>
__device__ __forceinline__ void write(const Call& c, int k, int64_t at, const S* v) {
  const DType type = k == A::grad_u || k == A::grad_t ? c.params_type : c.x_type;
  if constexpr (N > 1) {
    if (c.lies[k] == Lies::dense) return store_vector(type, c.data[k], at, v);
  }
  const int64_t step = c.stride[c.ndim - 1][k];
#pragma unroll
  for (int i = 0; i < N; ++i) store(type, c.data[k], at + i * step, v[i]);
}

// Logit and shift (or their gradients), k and k + 1: two tensors, or one that holds both in turn.
template <class S, int N>
__device__ __forceinline__ void read_params(const Call& c, const int64_t (&at)[A::count], S* u, S* t) {
  if constexpr (N > 1) {
    if (c.lies[A::u] == Lies::paired) {
      S v[2 * N];
      const void* first = c.shift_first ? c.data[A::t] : c.data[A::u];
      const int64_t there = c.shift_first ? at[A::t] : at[A::u];
      load_vector(c.params_type, first, there, v);
      load_vector(c.params_type, first, there + N, v + N);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        u[i] = c.shift_first ? v[2 * i + 1] : v[2 * i];
        t[i] = c.shift_first ? v[2 * i] : v[2 * i + 1];
      }
      return;
    }
  }
  if (c.data[A::u]) read<S, N>(c, A::u, at[A::u], u);
  read<S, N>(c, A::t, at[A::t], t);
}
template <class S, int N>
__device__ __forceinline__ void write_params(const Call& c, const int64_t (&at)[A::count], const S* u, const S* t) {
  if constexpr (N > 1) {
    if (c.lies[A::grad_u] == Lies::paired) {
      S v[2 * N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        v[2 * i] = c.shift_first ? t[i] : u[i];
        v[2 * i + 1] = c.shift_first ? u[i] : t[i];
      }
      void* first = c.shift_first ? c.data[A::grad_t] : c.data[A::grad_u];
      const int64_t there = c.shift_first ? at[A::grad_t] : at[A::grad_u];
      store_vector(c.params_type, first, there, v);
      store_vector(c.params_type, first, there + N, v + N);
      return;
    }
  }
  if (c.data[A::grad_u]) write<S, N>(c, A::grad_u, at[A::grad_u], u);
  if (c.data[A::grad_t]) write<S, N>(c, A::grad_t, at[A::grad_t], t);
}

template <int N>
__device__ __forceinline__ void read_mask(const Call& c, const int64_t (&at)[A::count], bool* on) {
  const unsigned char* flags = static_cast<const unsigned char*>(c.data[A::mask]);
  const int64_t step = c.stride[c.ndim - 1][A::mask];
#pragma unroll
  for (int i = 0; i < N; ++i) on[i] = !flags || flags[at[A::mask] + i * step] != 0;
}

// What passes a coupling layer by, of one row, by the threads of its group.
template <class Word>
__device__ void pass_words(const AffinePass& p, int64_t row, int lane, int lanes) {
  const Word* from = reinterpret_cast<const Word*>(p.from);
  Word* to = reinterpret_cast<Word*>(p.to);
  const int64_t n = p.begin + p.row - p.end;
#pragma unroll 1  // rather than 200 instructions that count the rounds, before every call
  for (int64_t i = lane; i < n; i += lanes) {
    const int64_t at = row * p.row + (i < p.begin ? i : i - p.begin + p.end);
    to[at] = from ? from[at] : Word{};
  }
}
__device__ __forceinline__ void pass_row(const Call& c, int64_t row, int lane) {
  const int lanes = 1 << c.log_group;
  if (c.word == 16) pass_words<uint4>(c.pass, row, lane, lanes);
  if (c.word == 4) pass_words<unsigned>(c.pass, row, lane, lanes);
  if (c.word == 2) pass_words<unsigned short>(c.pass, row, lane, lanes);
}

// N elements forward; returns their part of ladj.
template <class S, int N>
__device__ __forceinline__ S forward(const Affine<S>& map, const Call& c, const int64_t (&at)[A::count]) {
  S x[N], u[N] = {}, t[N], y[N], total = 0;
  bool on[N];
  read_mask<N>(c, at, on);
  read<S, N>(c, A::x, at[A::x], x);
  read_params<S, N>(c, at, u, t);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    S ladj;
    map.eval(u[i], t[i], x[i], &y[i], &ladj);
    y[i] = on[i] ? y[i] : x[i];
    total += on[i] ? ladj : S(0);
  }
  write<S, N>(c, A::y, at[A::y], y);
  return total;
}

template <class S, int N>
__device__ __forceinline__ void backward(const Affine<S>& map, const Call& c, const int64_t (&at)[A::count], S g_ladj) {
  S x[N], u[N] = {}, t[N], g[N] = {}, g_x[N], g_u[N], g_t[N];
  bool on[N];
  read_mask<N>(c, at, on);
  read<S, N>(c, A::x, at[A::x], x);
  read_params<S, N>(c, at, u, t);
  if (c.data[A::grad_y]) read<S, N>(c, A::grad_y, at[A::grad_y], g);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    g_x[i] = map.grad(u[i], t[i], x[i], g[i], g_ladj, &g_u[i], &g_t[i]);
    g_x[i] = on[i] ? g_x[i] : g[i];
    g_u[i] = on[i] ? g_u[i] : S(0);
    g_t[i] = on[i] ? g_t[i] : S(0);
  }
  if (c.data[A::grad_x]) write<S, N>(c, A::grad_x, at[A::grad_x], g_x);
  write_params<S, N>(c, at, g_u, g_t);
}

template <class S, int N, bool Backward>
__global__ void __launch_bounds__(kThreads, 2) affine_kernel(const Affine<S> map, const __grid_constant__ Call c) {
  __shared__ double partial[kThreads / 32];
  const int group = 1 << c.log_group, lane = int(threadIdx.x) & (group - 1), per_block = kThreads >> c.log_group;
  S* const ladj = static_cast<S*>(c.ladj);
  // All threads of a block go round together: sums need them.
  for (int64_t first = int64_t(blockIdx.x) * per_block; first < c.rows; first += int64_t(gridDim.x) * per_block) {
    const int64_t row = first + (int(threadIdx.x) >> c.log_group);
    double total = 0;
    if (row < c.rows) {
      const S g_ladj = Backward && ladj ? ladj[row] : S(0);
      for (int64_t e = int64_t(lane) * N; e < c.event; e += int64_t(group) * N) {
        int64_t at[A::count];
        place(c, row * c.event + e, at);
        if constexpr (Backward)
          backward<S, N>(map, c, at, g_ladj);
        else
          total += forward<S, N>(map, c, at);
      }
      if (c.word) pass_row(c, row, lane);
    }
    if constexpr (!Backward) {
      total = group > 32 ? sum_block(total, partial) : sum_lanes(total, group);
      if (lane == 0 && row < c.rows) ladj[row] = S(total);
    }
  }
}

// ---- on the host ----

bool aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes) == 0; }

int64_t type_bytes(const AffineArgs& a, int k) {
  const bool of_params = k == A::u || k == A::t || k == A::grad_u || k == A::grad_t;
  return bytes_of(of_params ? a.params_type : a.x_type);
}

// Every place of N neighbours of this tensor begins at a multiple of N numbers.
bool in_vectors(const AffineArgs& a, int k, int64_t n, int64_t step) {
  const AffineNest& nest = a.nest;
  if (!a.data[k] || nest.stride[nest.ndim - 1][k] != step || !aligned(a.data[k], n * type_bytes(a, k))) return false;
  for (int d = 0; d < nest.ndim - 1; ++d)
    if (nest.stride[d][k] % n) return false;
  return true;
}

// Whether tensors k and k + 1 alternate in memory, and -1 or 1: which comes first.
bool alternate(const AffineArgs& a, int k, bool* second_first) {
  const AffineNest& nest = a.nest;
  if (!a.data[k] || !a.data[k + 1]) return false;
  const int64_t apart = static_cast<char*>(a.data[k + 1]) - static_cast<char*>(a.data[k]), bytes = type_bytes(a, k);
  for (int d = 0; d < nest.ndim; ++d)
    if (nest.stride[d][k] != nest.stride[d][k + 1]) return false;
  *second_first = apart < 0;
  return apart == bytes || apart == -bytes;
}

// Bytes by which what passes can be copied.
int word_of(const AffinePass& p) {
  if (!p.to) return 0;
  for (int w : {16, 4})
    if (aligned(p.from, w) && aligned(p.to, w) && p.row % w == 0 && p.begin % w == 0 && p.end % w == 0) return w;
  return 2;
}

template <class S>
void run(const AffineSpec& spec, const AffineArgs& a, const CudaStream& on, bool backward) {
  constexpr int N = kVector<S>;
  if (a.nest.ndim > kMaxDims) throw std::invalid_argument("affine: more than 12 dims that cannot be merged");
  Call c = {};
  c.ndim = a.nest.ndim;
  for (int d = 0; d < c.ndim; ++d) {
    if (d > 0) c.size[d] = Divisor(a.nest.size[d]);
    for (int k = 0; k < A::count; ++k) c.stride[d][k] = a.nest.stride[d][k];
  }
  c.rows = a.rows, c.event = a.event;
  c.x_type = a.x_type, c.params_type = a.params_type;
  const bool vectors = a.event % N == 0 && a.nest.size[c.ndim - 1] % N == 0;
  for (int k = 0; k < A::count; ++k) {
    c.data[k] = a.data[k];
    c.lies[k] = vectors && k != A::mask && in_vectors(a, k, N, 1) ? Lies::dense : Lies::strided;
  }
  for (int k : {int(A::u), int(A::grad_u)}) {
    bool second_first = false;
    if (!vectors || !alternate(a, k, &second_first) || !in_vectors(a, second_first ? k + 1 : k, N, 2)) continue;
    c.lies[k] = Lies::paired;
    c.shift_first = second_first;
  }
  c.ladj = a.ladj;
  c.pass = a.pass;
  c.word = word_of(a.pass);
  if (c.word) c.pass.row /= c.word, c.pass.begin /= c.word, c.pass.end /= c.word;
  const int64_t steps = (a.event + (vectors ? N : 1) - 1) / (vectors ? N : 1);
  while (c.log_group < 5 && int64_t(1) << c.log_group < steps) ++c.log_group;
  if (steps > 32 * kLongRow) c.log_group = 8;
  static_assert(kThreads == 1 << 8, "a group that is the block");
  const int64_t per_block = kThreads >> c.log_group;
  const auto kernel = backward ? (vectors ? affine_kernel<S, N, true> : affine_kernel<S, 1, true>)
                               : (vectors ? affine_kernel<S, N, false> : affine_kernel<S, 1, false>);
  launch(on, grid_of((a.rows + per_block - 1) / per_block), kThreads, 0, kernel, Affine<S>(spec), c);
}

}  // namespace
}  // namespace cuda

void affine_fwd(const AffineSpec& spec, const AffineArgs& args, const CudaStream& on) {
  if (args.empty()) return;
  cuda::by_arithmetic(args.x_type, [&](auto s) { cuda::run<decltype(s)>(spec, args, on, false); });
}
void affine_bwd(const AffineSpec& spec, const AffineArgs& args, const CudaStream& on) {
  if (args.empty()) return;
  cuda::by_arithmetic(args.x_type, [&](auto s) { cuda::run<decltype(s)>(spec, args, on, true); });
}

}  // namespace fk
