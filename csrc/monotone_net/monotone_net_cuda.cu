// Monotone networks on a GPU: one launch puts the weights of every set side by side, one has a block for 32 elements of
// a feature, from what the signal says to y, a third sums ladj. Newton's steps are every lane's own, and all warps of a
// block take them alike, so that nothing of them has to be shared. Backward sums gradients of weights slice by slice of
// the batch, in the order that the sizes of a call decide, and one small launch adds the slices up.
#include "../common/launch.cuh"

#include "net_cuda.cuh"
#include "search_cuda.cuh"

namespace fk {
namespace cuda {
namespace {

// A whole call, as kernels take it.
struct Call {
  MonotoneArgs a;
  MonotonePlan plan;
  MonotoneWork work;
  int64_t row_blocks;  // of a feature
};

// ---- weights ----

// A block per unit of a set.
template <class S>
__global__ void __launch_bounds__(kThreads) monotone_pack_kernel(const __grid_constant__ Call c, int64_t units) {
  for (int64_t block = blockIdx.x; block < c.a.sets * units; block += gridDim.x) {
    const int64_t set = block / units;
    int64_t unit = block % units;
    int k = 0;
    for (; unit >= c.plan.layer[k].n_out; ++k) unit -= c.plan.layer[k].n_out;
    const MonotonePlace& l = c.plan.layer[k];
    const int64_t n_in = c.a.layers[k].n_in, first = k == 0;  // the column of x
    const S* const weight = static_cast<const S*>(c.a.layers[k].weight) + (set * l.n_out + unit) * n_in;
    S* const to = static_cast<S*>(c.work.packed) + set * c.plan.packed;
    for (int64_t i = threadIdx.x; i < l.stride; i += kThreads)
      to[l.weight + unit * l.stride + i] = i < l.n_in ? weight[first + i] : S(0);
    if (threadIdx.x > 0) continue;
    to[l.bias + unit] = static_cast<const S*>(c.a.layers[k].bias)[set * l.n_out + unit];
    if (k == 0) to[c.plan.column + unit] = weight[0];
  }
}

// ---- 32 elements ----

template <class S>
struct Tile {
  const Call& c;
  MonotoneNet<S> net;
  int64_t feature, first, row;  // row: the lane's
  bool valid;

  __device__ __forceinline__ Tile(const Call& call, S* shared, int64_t feature_, int64_t block)
      : c(call),
        net{call.plan, static_cast<const S*>(call.work.packed) + (call.a.sets == 1 ? 0 : feature_ * call.plan.packed),
            shared, int(threadIdx.x) % 32, int(threadIdx.x) / 32},
        feature(feature_),
        first(block * kRowsOfTile),
        row(first + net.lane),
        valid(row < call.a.rows) {}

  // ---- memory ----

  __device__ __forceinline__ S read(const void* from) const {
    return from && valid ? static_cast<const S*>(from)[row * c.a.features + feature] : S(0);
  }
  __device__ __forceinline__ S read_row(const void* from) const {
    return from && valid ? static_cast<const S*>(from)[row] : S(0);
  }
  __device__ __forceinline__ void write(void* to, S v) const {
    if (valid && net.warp == 0) static_cast<S*>(to)[row * c.a.features + feature] = v;
  }
  __device__ __forceinline__ int64_t signal_at(int64_t r) const { return (r * c.a.features + feature) * c.a.numbers; }
  __device__ __forceinline__ S shift() const {
    const bool there = c.a.spec.shift && valid;
    return there ? static_cast<const S*>(c.a.signal)[signal_at(row) + c.a.numbers - 1] : S(0);
  }
  __device__ __forceinline__ const S* signal() const { return static_cast<const S*>(c.a.signal) + signal_at(first); }
  __device__ __forceinline__ int64_t apart() const { return c.a.features * c.a.numbers; }
  __device__ __forceinline__ int rows() const {
    return int(c.a.rows - first < kRowsOfTile ? c.a.rows - first : kRowsOfTile);
  }
  __device__ __forceinline__ void see() const { net.see(signal(), apart(), rows()); }

  // ---- the integral ----

  // The logarithm of the integrand, of the net's output, and its derivative.
  __device__ __forceinline__ S log_of(S u) const { return quotient(u, 1 + abs_(u) * S(1 / c.a.spec.log_bound)); }
  __device__ __forceinline__ S log_slope(S u) const {
    const S q = reciprocal(1 + abs_(u) * S(1 / c.a.spec.log_bound));
    return q * q;
  }
  // The sum of g(from + step t) w over the rule's points, and log g at `end`.
  __device__ __forceinline__ S rule(int n, const double* node, const double* weight, S from, S step, S end,
                                    S* log_end) const {
    S sum = 0;
    for (int i = 0; i <= n; i += 2) {
      S u0, u1;
      const S v0 = i < n ? from + step * S(node[i]) : end, v1 = i + 1 < n ? from + step * S(node[i + 1]) : end;
      net.run(v0, v1, &u0, &u1);
      const S log0 = log_of(u0), log1 = log_of(u1);
      if (i < n) sum += exp_(log0) * S(weight[i]);
      if (i + 1 < n) sum += exp_(log1) * S(weight[i + 1]);
      *log_end = i < n ? log1 : log0;
    }
    return sum;
  }

  // ---- forward and inverse ----

  // y of x or, of an inverse, x of y; and the logarithm of the slope there.
  __device__ __forceinline__ S eval(S v, S* log) const {
    const S found = c.plan.positive ? of_net(v, log) : of_integral(v, log);
    if (v == v) return found;
    return *log = v;
  }

  static __device__ __forceinline__ bool any(bool on) { return __any_sync(0xffffffffu, on); }

  __device__ __forceinline__ S of_net(S v, S* log) const {
    const S bound = S(c.a.spec.bound);
    Search<S> s;
    s.start(v, -bound, bound, c.a.spec.inverse ? S(0) : v);
    s.active &= valid;
    S u = 0, slope = 0;
    for (int step = 0; step < 256 && any(s.active); ++step) {
      net.run(s.at, S(1), &u, &slope);
      if (!c.a.spec.inverse) break;
      s.step(u - v, slope);
    }
    *log = log_(c.a.spec.inverse ? s.slope_at_best + (s.best - s.best) : slope);  // NaN where x is
    return c.a.spec.inverse ? s.best : u;
  }

  // What a turn of of_integral evaluates. The inverse comes near by a rule of three points from each place to the next,
  // which costs little and errs a little; then it takes the full one, whose slope is off by what that rule errs, until
  // a step is so short that two points and the slope behind them are as good as the rest of the way.
  enum Stage : int { kForward, kFirst, kNear, kFull, kRest };

  __device__ __forceinline__ S of_integral(S v, S* log) const {
    const S bound = S(c.a.spec.bound), low = v < 0 ? -bound : S(0), high = v < 0 ? S(0) : bound;
    const MonotoneRules& few = c.work.rules;
    Stage stage = c.a.spec.inverse ? kFirst : kForward;
    Search<S> s;
    s.at = 0;
    S before = 0, area = 0, from = 0, at = 0, off = 0, last = 0;
    for (int turn = 0;;) {
      const S here = stage == kForward ? v : stage == kRest ? at : s.at;
      const S start = stage == kNear ? before : stage == kRest ? from : S(0), by = here - start;
      const int points = stage == kFirst ? 0 : stage == kNear ? 3 : stage == kRest ? 2 : c.a.spec.nodes;
      const double* const node = stage == kNear ? few.node3 : stage == kRest ? few.node2 : c.a.spec.node;
      const double* const weight = stage == kNear ? few.weight3 : stage == kRest ? few.weight2 : c.a.spec.weight;
      const S part = by * rule(points, node, weight, start, by, here, log), slope = exp_(*log);
      ++turn;
      if (stage == kForward) return part;
      if (stage == kRest) {
        const S x = at - quotient(off + part, slope);
        return by == 0 ? at : min_(max_(x, low), high);
      }
      if (stage == kFirst) {
        s.start(v, low, high, min_(max_(quotient(v, slope), low), high));
        s.active &= valid;
        stage = kNear, turn = 0;
      } else if (stage == kNear) {
        area += part;
        s.step(area - v, slope);
        before = here;
        s.active &= !(abs_(s.before) <= S(1e-3) * (1 + abs_(s.at)));
        if (turn < 24 && any(s.active)) continue;
        from = at = s.at;
        s.start(v, low, high, at);
        s.active &= valid;
        stage = kFull, turn = 0;
      } else {
        const S was = part - v;
        const bool open = s.active;
        s.step(was, slope);
        // Of its error a step leaves a share: what the last one left, and before that what a rule of many points
        // leaves.
        const S left = turn > 1 ? quotient(abs_(was), abs_(last)) : c.a.spec.nodes < 12 ? S(1) : S(0x1p-10);
        last = was;
        if (open && !s.active) from = at = s.best, off = 0;
        if (s.active && left * abs_(s.before) <= Search<S>::kUlp * (1 + abs_(s.at))) {
          from = here, at = s.at, off = was;
          s.active = false;
        }
        if (turn == 256) s.active = false;
      }
      if (stage == kFull && !any(s.active)) stage = kRest;
    }
  }

  // ---- backward ----

  // sums: those of the block's slice, or null.
  __device__ __forceinline__ void backward(double* sums) const {
    const bool inverse = c.a.spec.inverse;
    const S x = read(inverse ? c.a.root : c.a.x), g_out = read(c.a.grad_y);
    const S g_given = read_row(c.a.grad_ladj), g_ladj = inverse ? -g_given : g_given;
    see();
    net.clear();
    // The first pass is at x; the others are the points of the quadrature, two by two. Of an inverse what y gets is
    // known behind what x gets of the slope: a positive network passes x twice.
    const int n = c.a.spec.nodes, passes = !c.plan.positive ? 1 + (n + 1) / 2 : inverse ? 2 : 1;
    S g_x = 0, g_y = g_out;
    for (int pass = 0; pass < passes; ++pass) {
      const int i = 2 * (pass - 1);
      const bool points = !c.plan.positive && pass > 0, second = points && i + 1 < n;
      const S v0 = points ? x * S(c.a.spec.node[i]) : x;
      const S v1 = c.plan.positive ? S(1) : second ? x * S(c.a.spec.node[i + 1]) : v0;
      S u0, u1, g0, g1 = 0, slope = 0;
      net.run(v0, v1, &u0, &u1);
      if (points) {
        g0 = g_y * x * S(c.a.spec.weight[i]) * exp_(log_of(u0)) * log_slope(u0);
        if (second) g1 = g_y * x * S(c.a.spec.weight[i + 1]) * exp_(log_of(u1)) * log_slope(u1);
      } else if (c.plan.positive) {
        slope = u1;
        g0 = inverse && pass == 0 ? S(0) : g_y, g1 = g_ladj / slope;
      } else {
        slope = exp_(log_of(u0));
        g0 = g_ladj * log_slope(u0);
      }
      const bool twice = c.plan.positive && pass + 1 < passes;
      const S of_x = net.back(v0, v1, g0, g1, twice ? nullptr : sums);
      if (pass > 0) continue;
      g_x = inverse ? (g_out + of_x) / slope : c.plan.positive ? of_x : of_x + g_out * slope;
      if (inverse) g_y = -g_x;
      if (twice) net.clear();
    }
    if (c.a.grad_x) write(c.a.grad_x, g_x);
    if (c.a.grad_signal) write_signal(g_y);
    if (sums) net.back_of_signal(signal(), apart(), rows(), sums);
  }

  __device__ __forceinline__ void write_signal(S g_shift) const {
    constexpr int kUnits = MonotoneNet<S>::kUnits;
    const MonotonePlace& l = c.plan.layer[0];
    S* const to = static_cast<S*>(c.a.grad_signal) + signal_at(row);
    const S* const g = net.row(c.plan.g_seen);
    __syncthreads();
    for (int64_t at = net.warp * kUnits; at < l.n_in; at += kWarps * kUnits) {
      S sum[2][kUnits] = {};
      net.products_back(l, at, g, g, sum);
#pragma unroll
      for (int i = 0; i < kUnits; ++i)
        if (valid && at + i < l.n_in) to[at + i] = sum[0][i];
    }
    if (c.a.spec.shift && valid && net.warp == 0) to[c.a.numbers - 1] = g_shift;
  }
};

// ---- the batch ----

template <class S>
__global__ void __launch_bounds__(kThreads, 3) monotone_fwd_kernel(const __grid_constant__ Call c) {
  FK_DYNAMIC_SHARED(bytes);
  for (int64_t i = blockIdx.x; i < c.a.features * c.row_blocks; i += gridDim.x) {
    const Tile<S> tile(c, reinterpret_cast<S*>(bytes), i / c.row_blocks, i % c.row_blocks);
    tile.see();
    const bool inverse = c.a.spec.inverse;
    const S v = tile.read(c.a.x), shift = tile.shift();
    S log;
    const S found = tile.eval(inverse ? v - shift : v, &log);
    tile.write(c.a.y, inverse ? found : found + shift);
    if (tile.valid && tile.net.warp == 0)
      static_cast<S*>(c.work.terms)[tile.feature * c.a.rows + tile.row] = inverse ? -log : log;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) monotone_ladj_kernel(const __grid_constant__ Call c) {
  const int64_t threads = int64_t(gridDim.x) * kThreads;
  for (int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x; row < c.a.rows; row += threads) {
    double sum = 0;
    for (int64_t d = 0; d < c.a.features; ++d) sum += double(static_cast<const S*>(c.work.terms)[d * c.a.rows + row]);
    static_cast<S*>(c.a.ladj)[row] = S(sum);
  }
}

// A block per slice of a set: the row blocks of its features, dealt out one by one.
template <class S>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 2 : 3)
    monotone_bwd_kernel(const __grid_constant__ Call c) {
  FK_DYNAMIC_SHARED(bytes);
  const int64_t slices = c.work.slices, features = c.a.sets == 1 ? c.a.features : 1;
  for (int64_t block = blockIdx.x; block < c.a.sets * slices; block += gridDim.x) {
    const int64_t set = block / slices, slice = block % slices;
    double* const sums = c.work.sums ? c.work.sums + block * c.plan.sums : nullptr;
    for (int64_t i = threadIdx.x; sums && i < c.plan.sums; i += kThreads) sums[i] = 0;
    __syncthreads();
    for (int64_t i = slice; i < features * c.row_blocks; i += slices)
      Tile<S>(c, reinterpret_cast<S*>(bytes), set + i / c.row_blocks, i % c.row_blocks).backward(sums);
  }
}

// A thread per number of a set.
template <class S>
__global__ void __launch_bounds__(kThreads) monotone_sums_kernel(const __grid_constant__ Call c) {
  const int64_t all = c.a.sets * c.plan.sums, threads = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < all; i += threads) {
    const int64_t set = i / c.plan.sums, number = i % c.plan.sums;
    int k = c.plan.n - 1;
    while (number < c.plan.layer[k].sums) --k;
    const MonotoneLayer& l = c.a.layers[k];
    const int64_t at = number - c.plan.layer[k].sums, weights = l.n_out * l.n_in;
    S* const to = static_cast<S*>(at < weights ? l.grad_weight : l.grad_bias);
    if (!to) continue;
    double sum = 0;
    for (int64_t s = 0; s < c.work.slices; ++s) sum += c.work.sums[(set * c.work.slices + s) * c.plan.sums + number];
    to[at < weights ? set * weights + at : set * l.n_out + at - weights] = S(sum);
  }
}

// ---- on the host ----

unsigned grid_of_threads(int64_t n) { return grid_of((n + kThreads - 1) / kThreads); }

template <class S>
Call call_of(const MonotoneArgs& a, const MonotoneWork& work, bool backward, const CudaStream& on) {
  int64_t widths[kMaxMonotoneGpuLayers + 1], units = 0;
  widths[0] = a.seen();
  for (int k = 0; k < a.n; ++k) units += widths[k + 1] = a.layers[k].n_out;
  const Call c = {a, lay_out(a.spec, widths, a.n, backward), work, (a.rows + kRowsOfTile - 1) / kRowsOfTile};
  launch(on, grid_of(a.sets * units), kThreads, 0, monotone_pack_kernel<S>, c, units);
  return c;
}

template <class S>
void fwd(const MonotoneArgs& a, const MonotoneWork& work, const CudaStream& on) {
  const Call c = call_of<S>(a, work, false, on);
  launch(on, grid_of(a.features * c.row_blocks), kThreads, shared_bytes<S>(c.plan), monotone_fwd_kernel<S>, c);
  launch(on, grid_of_threads(a.rows), kThreads, 0, monotone_ladj_kernel<S>, c);
}

template <class S>
void bwd(const MonotoneArgs& a, const MonotoneWork& work, const CudaStream& on) {
  const Call c = call_of<S>(a, work, true, on);
  launch(on, grid_of(a.sets * work.slices), kThreads, shared_bytes<S>(c.plan), monotone_bwd_kernel<S>, c);
  if (work.sums) launch(on, grid_of_threads(a.sets * c.plan.sums), kThreads, 0, monotone_sums_kernel<S>, c);
}

}  // namespace
}  // namespace cuda

MonotoneRoom monotone_room(const MonotoneSpec& spec, const std::vector<int64_t>& widths, int type, int device) {
  const int n = int(widths.size()) - 1;
  if (n > kMaxMonotoneGpuLayers) return {false, 0, 0};
  const cuda::MonotonePlan plan = cuda::lay_out(spec, widths.data(), n, true);
  const int64_t pitch = DType(type) == DType::f64 ? cuda::kPitch<double> * 8 : cuda::kPitch<float> * 4;
  const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int64_t forward = cuda::lay_out(spec, widths.data(), n, false).rows, rows = plan.rows;
  return {(rows > forward ? rows : forward) <= most / pitch, plan.packed, plan.sums};
}

void monotone_fwd(const MonotoneArgs& a, const MonotoneWork& work, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::fwd<decltype(s)>(a, work, on); });
}
void monotone_bwd(const MonotoneArgs& a, const MonotoneWork& work, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::bwd<decltype(s)>(a, work, on); });
}

}  // namespace fk
