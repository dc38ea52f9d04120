// The rational-quadratic spline on a GPU, by the walk of all maps. Usual calls (x of float32, params of that or of 16
// bits, as autocast has them, a usual number of bins, linear tails, no gaps) have a kernel of their own: the next rows
// are on their way, past the registers, while these are computed, and loops over bins are unrolled.
#include "rqs_map.cuh"

#include "../univariate/walk.cuh"

#include <cuda_pipeline_primitives.h>

namespace fk {
namespace cuda {
namespace {

// ---- of a number of bins that the compiler knows, in float32 without gaps ----

struct FixedCall : Call {
  unsigned per_row;  // 2^20 / D and a little: n per_row / 2^20 is n / D for n and D up to kGroup
  bool inverse;
};

// What comes with an element's params.
struct Inputs {
  float v, g_out, g_ladj;
};

__device__ __forceinline__ float* row_at(float* at, DType) { return at; }
__device__ __forceinline__ NarrowRow row_at(unsigned short* at, DType type) { return {at, type}; }

// W: what params are stored as.
template <class C, class W, bool Backward>
__global__ void __launch_bounds__(kThreads, C::bins > 10 ? 4
                                            : Backward   ? 5
                                                         : 8)
    rqs_fixed_kernel(const __grid_constant__ C c, const __grid_constant__ FixedCall call) {
  constexpr int P = C::params, kWords = kElements * P;  // of a warp's rows, which are whole vectors
  constexpr int V = 16 / int(sizeof(W));
  static_assert(P % 2 == 1, "rows would begin in the same banks");
  FK_DYNAMIC_SHARED(bytes);
  __shared__ float ladjs[kGroup];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  // Two turns: rows that are computed, and the next ones, on their way.
  W* rows = reinterpret_cast<W*>(bytes) + warp * 2 * kWords;
  W* next = rows + kWords;
  const RqsArgs& a = call.a;
  const int64_t D = call.D;
  const bool long_row = D > kGroup;

  for (int64_t r0 = int64_t(blockIdx.x) * call.rows_per_block; r0 < call.rows;
       r0 += int64_t(gridDim.x) * call.rows_per_block) {
    const int64_t r1 = r0 + call.rows_per_block < call.rows ? r0 + call.rows_per_block : call.rows;
    const int64_t first = r0 * D, count = (r1 - r0) * D;
    const W* const params = static_cast<const W*>(a.params) + first * P;
    const auto fetch = [&](int64_t i, W* to) {
      const W* const from = params + i * P;
      if (count - i >= kElements) {
#pragma unroll
        for (int w = 0; w < kWords; w += 32 * V)
          if (w + 32 * V <= kWords || w + V * lane < kWords)
            __pipeline_memcpy_async(to + w + V * lane, from + w + V * lane, 16);
      } else {
        for (int w = lane; w < int(count - i) * P; w += 32) {
          if constexpr (sizeof(W) == 4)
            __pipeline_memcpy_async(to + w, from + w, 4);
          else
            to[w] = from[w];  // there is no such copy of 2 bytes
        }
      }
      __pipeline_commit();
    };
    const auto inputs = [&](int64_t i) {
      Inputs in = {};
      if (i + lane >= count) return in;
      const int64_t e = first + i + lane;
      in.v = static_cast<const float*>(a.x)[e];
      if (Backward && a.grad_y) in.g_out = static_cast<const float*>(a.grad_y)[e];
      if (Backward && a.grad_ladj) {
        const int64_t row = long_row ? 0 : int64_t(unsigned(i + lane) * call.per_row >> 20);
        in.g_ladj = static_cast<const float*>(a.grad_ladj)[r0 + row];
      }
      return in;
    };
    double total = 0;
    int64_t i = warp * kElements;
    fetch(i, rows);
    Inputs in = inputs(i);
    for (; i < count; i += kThreads) {
      fetch(i + kThreads, next);
      const Inputs after = inputs(i + kThreads);
      __pipeline_wait_prior(1);
      __syncwarp();
      const auto row = row_at(rows + lane * P, call.params_type);
      if (i + lane < count) {
        float exponentials[2][C::bins];
        const Found<float> f = find_fixed(c, row, call.inverse, in.v, exponentials);
        if constexpr (Backward) {
          const FoundGrad<float> g = grad_found(c, f, call.inverse, in.v, in.g_out, in.g_ladj);
          replace_by_gradient(c, row, f, g, [&](int k, int j) { return exponentials[k][j]; });
          static_cast<float*>(a.grad_x)[first + i + lane] = g.v;
        } else {
          float out, ladj;
          eval_found(c, f, call.inverse, in.v, &out, &ladj);
          static_cast<float*>(a.y)[first + i + lane] = out;
          if (long_row)
            total += ladj;
          else
            ladjs[i + lane] = ladj;
        }
      }
      __syncwarp();
      if constexpr (Backward) {
        W* const to = static_cast<W*>(a.grad_params) + (first + i) * P;
        if (count - i >= kElements) {
#pragma unroll
          for (int w = 0; w < kWords; w += 32 * V)
            if (w + 32 * V <= kWords || w + V * lane < kWords)
              *reinterpret_cast<float4*>(to + w + V * lane) = *reinterpret_cast<float4*>(rows + w + V * lane);
        } else {
          for (int w = lane; w < int(count - i) * P; w += 32) to[w] = rows[w];
        }
        __syncwarp();  // before the next rows
      }
      W* const done = rows;
      rows = next, next = done;
      in = after;
    }
    if constexpr (!Backward) {
      if (long_row)
        sum_long_row<float>(call, total, r0);
      else
        sum_rows(call, ladjs, r0, r1);
    }
  }
}

// ---- on the host ----

template <int K, bool Clip, class W>
void run_fixed(const RqsSpec& spec, const FixedCall& c, const CudaStream& on, bool backward) {
  using C = FixedConstants<K, Clip>;
  const auto kernel = backward ? rqs_fixed_kernel<C, W, true> : rqs_fixed_kernel<C, W, false>;
  launch(on, walk_grid(c), kThreads, sizeof(W) * 2 * kWarps * kElements * C::params, kernel, C(spec), c);
}

// By a kernel that knows the number of bins; false where there is none.
template <bool Clip, class W>
bool run_if_usual(const RqsSpec& spec, const Call& walk, const CudaStream& on, bool backward) {
  FixedCall c = {walk, 0, spec.inverse};
  const bool in_vectors = backward ? c.flat_out : c.flat_in;
  if (!in_vectors || spec.tails != Tails::linear || c.x_type != DType::f32) return false;
  // Params and blocks begin at whole vectors.
  constexpr int V = 16 / int(sizeof(W));
  if ((uintptr_t(c.a.params) | (backward ? uintptr_t(c.a.grad_params) : 0)) % 16 != 0) return false;
  while (c.rows_per_block * c.D % V != 0)
    if (--c.rows_per_block == 0) return false;
  c.per_row = unsigned((int64_t(1) << 20) / c.D + 1);
  if (spec.bins == 8) return run_fixed<8, Clip, W>(spec, c, on, backward), true;
  if constexpr (!Clip) {  // zuko has 8
    if (spec.bins == 10) return run_fixed<10, false, W>(spec, c, on, backward), true;
    if (spec.bins == 16) return run_fixed<16, false, W>(spec, c, on, backward), true;
  }
  return false;
}

// A clipped logit is left in the row, where 16 bits would round it.
template <bool Clip>
bool run_if_usual(const RqsSpec& spec, const Call& c, const CudaStream& on, bool backward) {
  if (c.params_type == DType::f32) return run_if_usual<Clip, float>(spec, c, on, backward);
  if constexpr (!Clip) return run_if_usual<false, unsigned short>(spec, c, on, backward);
  return false;
}

template <class S, bool Clip>
void run(const RqsSpec& spec, const RqsArgs& a, const CudaStream& on, bool backward) {
  const Call c = walk_call(a, spec.params());
  if constexpr (sizeof(S) == 4)
    if (run_if_usual<Clip>(spec, c, on, backward)) return;
  walk<S>(SplineMap<S, Clip, true>(spec), shared_numbers(spec), c, on, backward);
}

void run(const RqsSpec& spec, const RqsArgs& a, const CudaStream& on, bool backward) {
  if (a.empty()) return;
  if (spec.min_lambda != 0) refuse("rqs: order", "quadratic on a GPU", "linear");
  by_arithmetic(a.x_type, [&](auto s) {
    using S = decltype(s);
    spec.clip_size != 0 ? run<S, true>(spec, a, on, backward) : run<S, false>(spec, a, on, backward);
  });
}

}  // namespace
}  // namespace cuda

void rqs_fwd(const RqsSpec& spec, const RqsArgs& args, const CudaStream& on) { cuda::run(spec, args, on, false); }
void rqs_bwd(const RqsSpec& spec, const RqsArgs& args, const CudaStream& on) { cuda::run(spec, args, on, true); }

}  // namespace fk
