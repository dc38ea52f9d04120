// The LU linear map on a GPU: one launch applies both triangles, or solves with both, to a warp's tile of pixels while
// it stays in shared memory. Backward is the same kernel on transposed triangles; gradients of parameters are products
// of pixels by pixels, summed slice by slice, and one small launch that adds the slices up.
#include "../common/channel_ladj.cuh"
#include "../common/launch.cuh"
#include "triangle_cuda.cuh"

namespace fk {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// ---- two triangles on a tensor of pixels ----

template <class S>
struct Apply {
  LuArgs a;  // factors, and ladj: null where none is wanted
  bool transposed, solve;
  bool permuted_in;      // rows are permuted on their way in, or out
  bool biased;           // less bias in, plus bias out
  View<S> in, mid, out;  // mid: what is between the two solves; no data: not wanted
};

// The shared memory of a block.
template <class S>
struct Shared {
  Triangles<S> t;
  S* bias;
  int* rows;
  S* tiles;  // [warps][C * kStride]; before, a place to check the permutation in

  static size_t bytes(int64_t C, int warps) {
    const int64_t width = round_rows(C);
    return size_t((C * width + 3 * width + warps * C * kStride<S>)*int64_t(sizeof(S)) + width * 4);
  }
  __device__ Shared(unsigned char* at, int C) {
    const int width = round_rows(C);
    S* const s = reinterpret_cast<S*>(at);
    t = {s, s + C * width, s + (C + 1) * width, C, width};
    bias = s + (C + 2) * width;
    rows = reinterpret_cast<int*>(s + (C + 3) * width);
    tiles = reinterpret_cast<S*>(rows + width);
  }
};

// The factors as apply_triangle reads them, by all threads of a block; NaN where the permutation is none. Ends with a
// barrier.
template <class S>
__device__ void load_factors(const Apply<S>& c, const Shared<S>& shared) {
  const Triangles<S>& t = shared.t;
  const int C = t.channels, first = int(threadIdx.x), step = int(blockDim.x);
  const bool valid = read_permutation(c.a.permutation, C, shared.rows, reinterpret_cast<int*>(shared.tiles));
  const S *lower = static_cast<const S*>(c.a.lower), *upper = static_cast<const S*>(c.a.upper);
  for (int e = first; e < C * t.width; e += step) {
    const int i = e / t.width, j = e % t.width;
    const S v = j >= C || i == j ? S(0) : i > j ? lower[i * C + j] : upper[i * C + j];
    if (c.transposed || j >= C)
      t.matrix[e] = v;
    else
      t.matrix[j * t.width + i] = v;
  }
  // Ends of columns: of the transposed matrix they were rows' ends.
  S *const scaled = c.transposed ? t.lower_diagonal : t.upper_diagonal, *const ones = c.transposed ? t.upper_diagonal
                                                                                                   : t.lower_diagonal;
  const S *log_s = static_cast<const S*>(c.a.log_s), *sign = static_cast<const S*>(c.a.sign_s);
  const S* bias = static_cast<const S*>(c.a.bias);
  for (int i = first; i < C; i += step) {
    const S s = c.solve ? exp_(-log_s[i]) / sign[i] : exp_(log_s[i]) * sign[i];
    scaled[i] = valid ? s : S(NAN);
    ones[i] = 1;
    shared.bias[i] = c.biased ? bias[i] : S(0);
  }
  __syncthreads();
}

template <class S, bool Solve>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 4 && !Solve ? 3 : 2)
    lu_apply_kernel(const __grid_constant__ Apply<S> c) {
  FK_DYNAMIC_SHARED(bytes);
  const Shared<S> shared(bytes, int(c.a.channels));
  if (c.a.ladj) fill_ladj<S>(c.a, c.a.log_s);
  load_factors(c, shared);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  S* const z = shared.tiles + warp * shared.t.channels * kStride<S>;
  S* const own = z + lane * kOwn<S>;
  const int *rows_in = c.permuted_in ? shared.rows : nullptr, *rows_out = c.permuted_in ? nullptr : shared.rows;
  const S* const bias = c.biased ? shared.bias : nullptr;
  const int64_t step = int64_t(gridDim.x) * warps * kTile<S>;
  for (int64_t first = (int64_t(blockIdx.x) * warps + warp) * kTile<S>; first < c.in.count; first += step) {
    load_tile(c.in, first, lane, rows_in, c.permuted_in ? bias : nullptr, z);
    __syncwarp();
    apply_triangle<Solve, Solve>(shared.t, own);
    if (Solve && c.mid.t.data) {
      __syncwarp();
      store_tile(c.mid, first, lane, static_cast<const int*>(nullptr), static_cast<const S*>(nullptr), z);
      __syncwarp();
    }
    if (c.out.t.data) {
      apply_triangle<!Solve, Solve>(shared.t, own);
      __syncwarp();
      store_tile(c.out, first, lane, rows_out, c.permuted_in ? nullptr : bias, z);
    }
    __syncwarp();
  }
}

// Warps of a block: as many as find room for their tiles.
template <class S>
int warps_of(int64_t C, int64_t room) {
  const int64_t tile = int64_t(Shared<S>::bytes(C, 1) - Shared<S>::bytes(C, 0));
  const int64_t warps = (room - int64_t(Shared<S>::bytes(C, 0))) / tile;
  return int(warps < 0 ? 0 : warps > kThreads / 32 ? kThreads / 32 : warps);
}

int64_t room_of(int device) { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device); }

template <class S>
void run_apply(Apply<S> c, const CudaStream& on) {
  const int64_t C = c.a.channels, room = room_of(on.device);
  int warps = warps_of<S>(C, room);
  if (warps == 0) throw std::invalid_argument("lu_linear: the matrix does not fit in shared memory");
  const int64_t tiles = (c.in.count + kTile<S> - 1) / kTile<S>;
  const int64_t processors = attribute(cudaDevAttrMultiProcessorCount, on.device);
  while (warps > 1 && tiles < processors * warps) --warps;  // rather all multiprocessors than large blocks
  const size_t shared = Shared<S>::bytes(C, warps);
  const int64_t resident = room / int64_t(shared + 1024) < 1 ? 1 : room / int64_t(shared + 1024);
  const int64_t blocks = (tiles + warps - 1) / warps, most = processors * (resident < 8 ? resident : 8);
  launch(on, grid_of(blocks < most ? blocks : most), unsigned(32 * warps), shared,
         c.solve ? lu_apply_kernel<S, true> : lu_apply_kernel<S, false>, c);
}

// ---- sums over pixels of products of channels ----

// A thread's sums are kCells x kCells; a block's kSide x kSide.
constexpr int kCells = 6, kSide = 96;

template <class S>
struct Gram {
  LuArgs a;  // permutation and the gradient of ladj
  View<S> left[2], right[2];
  int n;          // how many sums: one, or two
  bool permuted;  // the first left one
  double* sums;   // [slices][sum by sum: C^2, bias: C, ladj]
  int64_t slices;
  int tiles;  // of either operand that a block holds
  int group;  // a block's sums are of group x group threads, and so many splits
};

inline __host__ __device__ int64_t sums_stride(int64_t C) { return 2 * C * C + C + 1; }

template <class S>
__global__ void __launch_bounds__(kThreads, 1) lu_gram_kernel(const __grid_constant__ Gram<S> c) {
  FK_DYNAMIC_SHARED(bytes);
  constexpr int N = kVector<S>, kPieces = kTile<S> / N;
  const int C = int(c.a.channels), group = c.group, cells = group * group;
  const int blocks = (C + kSide - 1) / kSide;
  const int64_t slice = blockIdx.x % c.slices;
  const int which = int(blockIdx.x / c.slices) % c.n, pair = int(blockIdx.x / c.slices) / c.n;
  const int first_row = pair / blocks * kSide, first_column = pair % blocks * kSide;
  int* const rows = reinterpret_cast<int*>(bytes);
  S* const tiles = reinterpret_cast<S*>(rows + 2 * round_rows(C));
  const bool valid = read_permutation(c.a.permutation, C, rows, rows + round_rows(C));

  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int pieces = c.tiles * kPieces, splits = kThreads / cells < pieces ? kThreads / cells : pieces;
  const int split = int(threadIdx.x) / cells, cell = int(threadIdx.x) % cells;
  int row[kCells], column[kCells];
#pragma unroll
  for (int i = 0; i < kCells; ++i) {  // those past the last are done for nothing
    const int r = first_row + cell / group + group * i, k = first_column + cell % group + group * i;
    row[i] = (r < C ? r : C - 1) * kStride<S>;
    column[i] = (k < C ? k : C - 1) * kStride<S>;
  }
  const bool sums_bias = c.a.grad_bias && which == 0 && first_column == 0;
  S total[kCells][kCells] = {};
  double bias[kCells] = {};
  const int64_t room = int64_t(c.tiles) * kTile<S>, size = int64_t(C) * kStride<S>;
  for (int64_t first = slice * room; first < c.left[0].count; first += c.slices * room) {
    for (int task = warp; task < 2 * c.tiles; task += kThreads / 32) {
      const bool left = task % 2 == 0;
      load_tile(left ? c.left[which] : c.right[which], first + task / 2 * kTile<S>, lane,
                left && c.permuted && which == 0 ? rows : nullptr, static_cast<const S*>(nullptr), tiles + task * size);
    }
    __syncthreads();
    if (split < splits) {
      S sum[kCells][kCells] = {};
      for (int q = split; q < pieces; q += splits) {
        const S* const l = tiles + q / kPieces * 2 * size + q % kPieces * N;
        const S* const r = l + size;
        S u[kCells][N];
#pragma unroll
        for (int i = 0; i < kCells; ++i) {
          load_vector(kPlain<S>, l, row[i], u[i]);
          if (sums_bias && cell % group == 0)
            for (int k = 0; k < N; ++k) bias[i] += double(u[i][k]);
        }
#pragma unroll
        for (int j = 0; j < kCells; ++j) {
          S v[N];
          load_vector(kPlain<S>, r, column[j], v);
#pragma unroll
          for (int i = 0; i < kCells; ++i)
#pragma unroll
            for (int k = 0; k < N; ++k) sum[i][j] += u[i][k] * v[k];
        }
      }
#pragma unroll
      for (int i = 0; i < kCells; ++i)
#pragma unroll
        for (int j = 0; j < kCells; ++j) total[i][j] += sum[i][j];
    }
    __syncthreads();
  }

  // The splits' sums, through shared memory.
  constexpr int kAll = kCells * kCells;
  double* const out = c.sums + slice * sums_stride(C);
  S* const parts = tiles;
  if (split < splits)
#pragma unroll
    for (int i = 0; i < kAll; ++i) parts[(split * kAll + i) * cells + cell] = total[i / kCells][i % kCells];
  __syncthreads();
  for (int e = int(threadIdx.x); e < kAll * cells; e += kThreads) {
    const int i = e / cells, r = first_row + e % cells / group + group * (i / kCells),
              k = first_column + e % cells % group + group * (i % kCells);
    if (r >= C || k >= C || r >= first_row + kSide || k >= first_column + kSide) continue;
    double sum = 0;
    for (int s = 0; s < splits; ++s) sum += double(parts[s * kAll * cells + e]);
    out[which * C * C + r * C + k] = valid ? sum : double(NAN);
  }
  if (which > 0 || pair % blocks > 0) return;
  __syncthreads();
  double* const of_bias = reinterpret_cast<double*>(tiles);
  if (split < splits && cell % group == 0)
#pragma unroll
    for (int i = 0; i < kCells; ++i) of_bias[(split * kCells + i) * group + cell / group] = bias[i];
  __syncthreads();
  for (int e = int(threadIdx.x); e < kCells * group; e += kThreads) {
    const int r = first_row + e % group + group * (e / group);
    if (r >= C || r >= first_row + kSide) continue;
    double sum = 0;
    for (int s = 0; s < splits; ++s) sum += of_bias[s * kCells * group + e];
    out[2 * C * C + r] = valid ? sum : double(NAN);
  }
  if (pair > 0) return;
  __syncthreads();
  const double of_ladj = sum_of_ladj_gradient<S>(c.a, slice, c.slices, of_bias);
  if (threadIdx.x == 0) out[2 * C * C + C] = of_ladj;
}

// Row i of the lower triangle's gradient, or column j of the upper one's and what else has index j: of the forward map
// from G = sum g_r x^T as G U^T and L^T G, of the inverse from a sum each.
template <class S>
__global__ void __launch_bounds__(kThreads)
    lu_finish_kernel(const __grid_constant__ LuArgs a, const double* sums, int64_t slices) {
  FK_DYNAMIC_SHARED(bytes);
  double* const line = reinterpret_cast<double*>(bytes);
  const int64_t C = a.channels, stride = sums_stride(C);
  const bool of_lower = blockIdx.x < C;
  const int64_t at = of_lower ? blockIdx.x : blockIdx.x - C;
  const double* const from = sums + (a.inverse && !of_lower ? C * C : 0);
  for (int64_t k = threadIdx.x; k < C; k += kThreads) {
    double sum = 0;
    for (int64_t s = 0; s < slices; ++s) sum += from[s * stride + (of_lower ? at * C + k : k * C + at)];
    line[k] = a.inverse ? -sum : sum;
  }
  __syncthreads();
  const S *lower = static_cast<const S*>(a.lower), *upper = static_cast<const S*>(a.upper);
  const S *log_s = static_cast<const S*>(a.log_s), *sign = static_cast<const S*>(a.sign_s);
  if (of_lower) {
    S* const to = static_cast<S*>(a.grad_lower);
    for (int64_t j = threadIdx.x; to && j < C; j += kThreads) {
      double sum = 0;
      if (j < at) {
        sum = line[j];
        if (!a.inverse) {
          sum *= double(exp_(log_s[j]) * sign[j]);
          for (int64_t k = j + 1; k < C; ++k) sum += line[k] * double(upper[j * C + k]);
        }
      }
      to[at * C + j] = S(sum);
    }
    return;
  }
  for (int64_t i = threadIdx.x; i < C; i += kThreads) {
    double sum = 0;
    if (i <= at) {
      sum = line[i];
      for (int64_t k = i + 1; !a.inverse && k < C; ++k) sum += line[k] * double(lower[k * C + i]);
    }
    if (a.grad_upper) static_cast<S*>(a.grad_upper)[i * C + at] = i < at ? S(sum) : S(0);
    if (i != at) continue;
    const double scale = double(exp_(log_s[i]));
    double of_ladj = 0, bias = 0;
    int64_t row = a.permutation ? a.permutation[at] : at;
    if (row < 0 || row >= C) row = at;  // no permutation: all sums are NaN
    for (int64_t s = 0; s < slices; ++s) {
      bias += sums[s * stride + 2 * C * C + row];
      of_ladj += sums[s * stride + 2 * C * C + C];
    }
    of_ladj *= double(a.ladj_pixels);
    if (a.grad_log_s)
      static_cast<S*>(a.grad_log_s)[i] = S(sum * scale * double(sign[i]) + (a.inverse ? -of_ladj : of_ladj));
    if (a.grad_sign_s) static_cast<S*>(a.grad_sign_s)[i] = S(sum * scale);
    if (a.grad_bias) static_cast<S*>(a.grad_bias)[i] = S(a.inverse ? -bias : bias);
  }
}

template <class S>
void run_sums(Gram<S> c, const CudaStream& on) {
  const int64_t C = c.a.channels, tile = C * kStride<S> * int64_t(sizeof(S)), ints = 2 * round_rows(C) * 4;
  const int64_t room = room_of(on.device);
  const int64_t tiles = room / (2 * tile);
  c.tiles = int(tiles < 1 ? 1 : tiles > 8 ? 8 : tiles);
  c.group = int(((C < kSide ? C : kSide) + kCells - 1) / kCells);
  const int cells = c.group * c.group;
  const int64_t parts = int64_t(kThreads / cells) * cells * kCells * kCells * int64_t(sizeof(S));
  const int64_t shared = ints + (2 * c.tiles * tile > parts ? 2 * c.tiles * tile : parts);
  const int64_t blocks = (C + kSide - 1) / kSide;
  launch(on, unsigned(c.slices * c.n * blocks * blocks), kThreads, size_t(shared), lu_gram_kernel<S>, c);
  launch(on, unsigned(2 * C), kThreads, size_t(C) * sizeof(double), lu_finish_kernel<S>, c.a, c.sums, c.slices);
}

template <class S>
void run_fwd(const LuArgs& a, const CudaStream& on) {
  Apply<S> c = {
      a, false, a.inverse, a.inverse, a.bias != nullptr, View<S>(a.x, a.type, a), {}, View<S>(a.y, a.type, a)};
  run_apply(c, on);
}

template <class S>
void run_bwd(const LuArgs& a, const LuWork& work, const CudaStream& on) {
  const auto view = [&](const Channels& t) { return View<S>(t, a.type, a); };
  const auto columns = [&](void* p) { return view({p, a.pixels, a.count(), 1}); };
  const bool weights = work.sums != nullptr, solve = a.inverse && weights;
  if (a.grad_x.data)
    run_apply(Apply<S>{a, true, a.inverse, !a.inverse, false, view(a.grad_y), solve ? columns(work.g_h) : View<S>(),
                       view(a.grad_x)},
              on);
  if (!weights) return;
  if (solve) run_apply(Apply<S>{a, false, true, true, a.bias != nullptr, view(a.x), columns(work.h), View<S>()}, on);
  Gram<S> c = {};
  c.a = a;
  c.left[0] = view(a.inverse ? a.grad_x : a.grad_y);
  c.right[0] = a.inverse ? columns(work.h) : view(a.x);
  if (a.inverse) {
    c.left[1] = columns(work.g_h);
    c.right[1] = view(a.y);
  }
  c.n = a.inverse ? 2 : 1;
  c.permuted = true;
  c.sums = work.sums, c.slices = work.slices;
  run_sums(c, on);
}

}  // namespace
}  // namespace cuda

bool lu_fits(int type, int64_t channels, int device) {
  if (channels == 0) return true;
  const int64_t room = cuda::room_of(device);
  if (DType(type) == DType::f64) return cuda::warps_of<double>(channels, room) > 0;
  return cuda::warps_of<float>(channels, room) > 0;
}

void lu_fwd(const LuArgs& a, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run_fwd<decltype(s)>(a, on); });
}
void lu_bwd(const LuArgs& a, const LuWork& work, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run_bwd<decltype(s)>(a, work, on); });
}

}  // namespace fk
