// The LU linear map on a GPU: one launch applies both triangles, or solves with both, to a warp's tile of pixels while
// it stays in shared memory. Gradients of parameters are products of pixels by pixels, summed slice by slice, and one
// small launch that adds the slices up. Backward does the former on transposed triangles and the latter's products in
// one launch, where tiles of both operands fit beside the matrix; else in one each.
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

// Both triangles as apply_triangle reads them, or transposed, by all threads of a block.
template <class S>
__device__ void load_square(const LuArgs& a, bool transposed, const Triangles<S>& t) {
  const S *lower = static_cast<const S*>(a.lower), *upper = static_cast<const S*>(a.upper);
  const int C = t.channels;
  for (int e = int(threadIdx.x); e < C * t.width; e += int(blockDim.x)) {
    const int i = e / t.width, j = e % t.width;
    const S v = j >= C || i == j ? S(0) : i > j ? lower[i * C + j] : upper[i * C + j];
    if (transposed || j >= C)
      t.matrix[e] = v;
    else
      t.matrix[j * t.width + i] = v;
  }
}

// All factors, by all threads of a block; NaN, and false, where the permutation is none. Ends with a barrier.
template <class S>
__device__ bool load_factors(const LuArgs& a, bool transposed, bool solve, const Shared<S>& shared) {
  const Triangles<S>& t = shared.t;
  const int C = t.channels;
  const bool valid = read_permutation(a.permutation, C, shared.rows, reinterpret_cast<int*>(shared.tiles));
  load_square(a, transposed, t);
  // Ends of columns: of the transposed matrix they were rows' ends.
  S *const scaled = transposed ? t.lower_diagonal : t.upper_diagonal, *const ones = transposed ? t.upper_diagonal
                                                                                               : t.lower_diagonal;
  const S *log_s = static_cast<const S*>(a.log_s), *sign = static_cast<const S*>(a.sign_s);
  const S* bias = static_cast<const S*>(a.bias);
  for (int i = int(threadIdx.x); i < C; i += int(blockDim.x)) {
    const S s = solve ? exp_(-log_s[i]) / sign[i] : exp_(log_s[i]) * sign[i];
    scaled[i] = valid ? s : S(NAN);
    ones[i] = 1;
    shared.bias[i] = bias ? bias[i] : S(0);
  }
  __syncthreads();
  return valid;
}

// log of a diagonal element's absolute value.
template <class S>
__device__ __forceinline__ S log_size(const LuArgs& a, int64_t i, S) {
  const S size = abs_(static_cast<const S*>(a.sign_s)[i]), log_s = static_cast<const S*>(a.log_s)[i];
  return size == 1 ? log_s : log_s + log_(size);
}

template <class S, bool Solve>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 4 && !Solve ? 3 : 2)
    lu_apply_kernel(const __grid_constant__ Apply<S> c) {
  FK_DYNAMIC_SHARED(bytes);
  const Shared<S> shared(bytes, int(c.a.channels));
  if (c.a.ladj) fill_ladj<S>(c.a, [&](int64_t i) { return log_size(c.a, i, S()); });
  load_factors(c.a, c.transposed, c.solve, shared);
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

// Sums of `group` x `group` threads, in as many splits of the pixels as there are threads for.
template <class S>
struct Cells {
  static constexpr int kPieces = kTile<S> / kVector<S>;
  static constexpr int kAll = kCells * kCells;
  using Sums = S[kCells][kCells];

  int channels, group, pieces, splits, split, cell, first_row, first_column;
  int row[kCells], column[kCells];  // where a thread's channels begin in a tile

  __device__ __forceinline__ Cells(int channels, int group, int tiles, int first_row, int first_column)
      : channels(channels), group(group), first_row(first_row), first_column(first_column) {
    const int cells = group * group;
    pieces = tiles * kPieces;
    splits = kThreads / cells < pieces ? kThreads / cells : pieces;
    split = int(threadIdx.x) / cells, cell = int(threadIdx.x) % cells;
#pragma unroll
    for (int i = 0; i < kCells; ++i) {  // those past the last are done for nothing
      const int r = first_row + cell / group + group * i, k = first_column + cell % group + group * i;
      row[i] = (r < channels ? r : channels - 1) * kStride<S>;
      column[i] = (k < channels ? k : channels - 1) * kStride<S>;
    }
  }

  // Adds what tiles give, left and right in turn.
  __device__ __forceinline__ void add(const S* tiles, Sums& total) const {
    constexpr int N = kVector<S>;
    if (split >= splits) return;
    const int64_t size = int64_t(channels) * kStride<S>;
    Sums sum = {};
    for (int q = split; q < pieces; q += splits) {
      const S* const l = tiles + q / kPieces * 2 * size + q % kPieces * N;
      const S* const r = l + size;
      S u[kCells][N];
#pragma unroll
      for (int i = 0; i < kCells; ++i) load_vector(kPlain<S>, l, row[i], u[i]);
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

  // The splits' sums, through shared memory that nobody uses any more, to `out` [C, C]; NaN where they are not `valid`.
  // Ends with a barrier.
  __device__ __forceinline__ void write(const Sums& total, S* parts, bool valid, double* out) const {
    const int C = channels, cells = group * group;
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
      out[r * C + k] = valid ? sum : double(NAN);
    }
    __syncthreads();
  }

  // Of the left operand alone: a thread's part of one channel's sum.
  __device__ __forceinline__ void add_bias(const S* tiles, double& total) const {
    const int rows = bias_rows(), part = int(threadIdx.x) / rows;
    const int64_t size = int64_t(channels) * kStride<S>;
    const S* const from = tiles + (first_row + int(threadIdx.x) % rows) * kStride<S>;
    if (part >= kThreads / rows) return;
    for (int q = part; q < pieces; q += kThreads / rows) {
      S u[kVector<S>];
      load_vector(kPlain<S>, from, q / kPieces * 2 * size + q % kPieces * kVector<S>, u);
#pragma unroll
      for (S v : u) total += double(v);
    }
  }
  __device__ __forceinline__ void write_bias(double total, double* parts, bool valid, double* out) const {
    const int rows = bias_rows(), row = int(threadIdx.x);
    parts[row] = total;
    __syncthreads();
    if (row < rows) {
      double sum = 0;
      for (int part = 0; part < kThreads / rows; ++part) sum += parts[part * rows + row];
      out[first_row + row] = valid ? sum : double(NAN);
    }
    __syncthreads();
  }

 private:
  __device__ __forceinline__ int bias_rows() const {
    return channels - first_row < kSide ? channels - first_row : kSide;
  }
};

// Threads across a block's sums, and bytes that Cells::write takes.
inline int group_of(int64_t C) { return int(((C < kSide ? C : kSide) + kCells - 1) / kCells); }
template <class S>
int64_t bytes_of_parts(int group) {
  const int cells = group * group;
  return int64_t(kThreads / cells) * cells * kCells * kCells * int64_t(sizeof(S));
}

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
  const int C = int(c.a.channels), blocks = (C + kSide - 1) / kSide;
  const int64_t slice = blockIdx.x % c.slices;
  const int which = int(blockIdx.x / c.slices) % c.n, pair = int(blockIdx.x / c.slices) / c.n;
  int* const rows = reinterpret_cast<int*>(bytes);
  S* const tiles = reinterpret_cast<S*>(rows + 2 * round_rows(C));
  const bool valid = read_permutation(c.a.permutation, C, rows, rows + round_rows(C));

  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Cells<S> cells(C, c.group, c.tiles, pair / blocks * kSide, pair % blocks * kSide);
  S total[kCells][kCells] = {};
  double bias = 0;
  const bool sums_bias = which == 0 && pair % blocks == 0;
  const int64_t room = int64_t(c.tiles) * kTile<S>, size = int64_t(C) * kStride<S>;
  for (int64_t first = slice * room; first < c.left[0].count; first += c.slices * room) {
    for (int task = warp; task < 2 * c.tiles; task += kThreads / 32) {
      const bool left = task % 2 == 0;
      load_tile(left ? c.left[which] : c.right[which], first + task / 2 * kTile<S>, lane,
                left && c.permuted && which == 0 ? rows : nullptr, static_cast<const S*>(nullptr), tiles + task * size);
    }
    __syncthreads();
    cells.add(tiles, total);
    if (sums_bias && c.a.grad_bias) cells.add_bias(tiles, bias);
    __syncthreads();
  }

  double* const out = c.sums + slice * sums_stride(C);
  cells.write(total, tiles, valid, out + which * C * C);
  if (sums_bias) cells.write_bias(bias, reinterpret_cast<double*>(tiles), valid, out + 2 * C * C);
  if (which > 0 || pair > 0) return;
  const double of_ladj = sum_of_ladj_gradient<S>(c.a, slice, c.slices, reinterpret_cast<double*>(tiles));
  if (threadIdx.x == 0) out[2 * C * C + C] = of_ladj;
}

// ---- the same sums and the gradient of x in one launch ----

// Needs two tiles a warp beside the matrix (two matrices for the inverse), and all sums in one block.
template <class S>
struct Backward {
  LuArgs a;
  View<S> x, y, grad_y, grad_x;
  double* sums;  // as Gram's
  int64_t slices;
  int tiles, group;
};

template <class S, bool Inverse>
__global__ void __launch_bounds__(kThreads, 1) lu_backward_kernel(const __grid_constant__ Backward<S> c) {
  FK_DYNAMIC_SHARED(bytes);
  const int C = int(c.a.channels), lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t room = int64_t(c.tiles) * kTile<S>, size = int64_t(C) * kStride<S>;
  const Shared<S> shared(bytes, C);
  const bool valid = load_factors(c.a, true, Inverse, shared);
  const Triangles<S>& t = shared.t;
  // For h: the matrix as it is, of which the lower triangle is used.
  const Triangles<S> plain = {shared.tiles, t.upper_diagonal, t.upper_diagonal, C, t.width};
  if (Inverse) load_square(c.a, false, plain);
  S* const tiles = Inverse ? shared.tiles + C * t.width : shared.tiles;
  S *const left = tiles + 2 * warp * size, *const right = left + size;
  const bool owner = warp < c.tiles;
  const S* const none = nullptr;

  const Cells<S> cells(C, c.group, c.tiles, 0, 0);
  S total[Inverse ? 2 : 1][kCells][kCells] = {};
  double bias = 0;
  for (int64_t first = blockIdx.x * room; first < c.grad_y.count; first += c.slices * room) {
    __syncthreads();  // the square, and what was read of these tiles before
    for (int task = warp; task < 2 * c.tiles; task += kThreads / 32) {
      const bool of_y = task % 2 == 0;
      load_tile(of_y      ? c.grad_y
                : Inverse ? c.y
                          : c.x,
                first + task / 2 * kTile<S>, lane, of_y && !Inverse ? shared.rows : nullptr, none, tiles + task * size);
    }
    __syncthreads();
    const int64_t own = first + warp * kTile<S>;
    if constexpr (Inverse) {
      if (owner) apply_triangle<true, true>(t, left + lane * kOwn<S>);  // g_h
      __syncthreads();
      cells.add(tiles, total[1]);
      __syncthreads();
      if (owner) {
        load_tile(c.x, own, lane, shared.rows, c.a.bias ? shared.bias : none, right);
        __syncwarp();
        apply_triangle<true, true>(plain, right + lane * kOwn<S>);  // h
        apply_triangle<false, true>(t, left + lane * kOwn<S>);      // g_r
      }
      __syncthreads();
      cells.add(tiles, total[0]);
      if (c.a.grad_bias) cells.add_bias(tiles, bias);
      if (owner && c.grad_x.t.data) store_tile(c.grad_x, own, lane, shared.rows, none, left);
    } else {
      cells.add(tiles, total[0]);
      if (c.a.grad_bias) cells.add_bias(tiles, bias);
      __syncthreads();
      if (owner && c.grad_x.t.data) {
        apply_triangle<false, false>(t, left + lane * kOwn<S>);
        apply_triangle<true, false>(t, left + lane * kOwn<S>);
        __syncwarp();
        store_tile(c.grad_x, own, lane, static_cast<const int*>(nullptr), none, left);
      }
    }
  }
  __syncthreads();

  double *const out = c.sums + blockIdx.x * sums_stride(C), *const parts = reinterpret_cast<double*>(tiles);
#pragma unroll
  for (int i = 0; i < (Inverse ? 2 : 1); ++i) cells.write(total[i], tiles, valid, out + i * C * C);
  cells.write_bias(bias, parts, valid, out + 2 * C * C);
  const double of_ladj = sum_of_ladj_gradient<S>(c.a, blockIdx.x, c.slices, parts);
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
    of_ladj *= double(a.inverse ? -a.ladj_pixels : a.ladj_pixels);
    if (a.grad_log_s) static_cast<S*>(a.grad_log_s)[i] = S(sum * scale * double(sign[i]) + of_ladj);
    if (a.grad_sign_s)
      static_cast<S*>(a.grad_sign_s)[i] = S(sum * scale + (a.grad_ladj ? of_ladj / double(sign[i]) : 0));
    if (a.grad_bias) static_cast<S*>(a.grad_bias)[i] = S(a.inverse ? -bias : bias);
  }
}

template <class S>
void run_finish(const LuArgs& a, const LuWork& work, const CudaStream& on) {
  launch(on, unsigned(2 * a.channels), kThreads, size_t(a.channels) * sizeof(double), lu_finish_kernel<S>, a, work.sums,
         work.slices);
}

template <class S>
void run_sums(Gram<S> c, const CudaStream& on) {
  const int64_t C = c.a.channels, tile = C * kStride<S> * int64_t(sizeof(S)), ints = 2 * round_rows(C) * 4;
  const int64_t tiles = (room_of(on.device) - ints) / (2 * tile);
  c.tiles = int(tiles < 1 ? 1 : tiles > 8 ? 8 : tiles);
  c.group = group_of(C);
  const int64_t parts = bytes_of_parts<S>(c.group);
  const int64_t shared = ints + (2 * c.tiles * tile > parts ? 2 * c.tiles * tile : parts);
  const int64_t blocks = (C + kSide - 1) / kSide;
  launch(on, unsigned(c.slices * c.n * blocks * blocks), kThreads, size_t(shared), lu_gram_kernel<S>, c);
}

// Pairs of tiles that lu_backward_kernel has room for, and its shared memory. Only float: sums in double, two of them
// for the inverse, would not stay in registers.
template <class S>
int64_t backward_bytes(int64_t C, bool inverse, int tiles) {
  const int64_t square = inverse ? C * round_rows(C) * int64_t(sizeof(S)) : 0, parts = bytes_of_parts<S>(group_of(C));
  const int64_t none = int64_t(Shared<S>::bytes(C, 0)), all = int64_t(Shared<S>::bytes(C, 2 * tiles));
  return square + none + (all - none > parts ? all - none : parts);
}
int backward_tiles(int64_t C, bool inverse, int64_t room) {
  if (C < 1 || C > kSide) return 0;
  int tiles = kThreads / 32;
  while (tiles > 0 && backward_bytes<float>(C, inverse, tiles) > room) --tiles;
  return tiles;
}

void run_backward(const LuArgs& a, const LuWork& work, const CudaStream& on) {
  using S = float;
  const auto view = [&](const Channels& t, DType type) { return View<S>(t, type, a); };
  Backward<S> c = {};
  c.a = a;
  c.x = view(a.x, a.type), c.y = view(a.y, DType::f32);
  c.grad_y = view(a.grad_y, a.type), c.grad_x = view(a.grad_x, a.type);
  c.sums = work.sums, c.slices = work.slices;
  c.group = group_of(a.channels);
  c.tiles = backward_tiles(a.channels, a.inverse, room_of(on.device));
  while (c.tiles > 1 && c.slices * (c.tiles - 1) * kTile<S> >= a.count()) --c.tiles;
  launch(on, unsigned(c.slices), kThreads, size_t(backward_bytes<S>(a.channels, a.inverse, c.tiles)),
         a.inverse ? lu_backward_kernel<S, true> : lu_backward_kernel<S, false>, c);
  run_finish<S>(a, work, on);
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
  if constexpr (sizeof(S) == 4)
    if (weights && backward_tiles(a.channels, a.inverse, room_of(on.device)) > 0) return run_backward(a, work, on);
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
  run_finish<S>(a, work, on);
}

}  // namespace
}  // namespace cuda

bool lu_fits(int type, int64_t channels, int device) {
  if (channels == 0) return true;
  const int64_t room = cuda::room_of(device);
  if (DType(type) == DType::f64) return cuda::warps_of<double>(channels, room) > 0;
  return cuda::warps_of<float>(channels, room) > 0;
}

bool lu_fuses(int type, bool inverse, int64_t channels, int device) {
  return DType(type) != DType::f64 && cuda::backward_tiles(channels, inverse, cuda::room_of(device)) > 0;
}

void lu_fwd(const LuArgs& a, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run_fwd<decltype(s)>(a, on); });
}
void lu_bwd(const LuArgs& a, const LuWork& work, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run_bwd<decltype(s)>(a, work, on); });
}

}  // namespace fk
