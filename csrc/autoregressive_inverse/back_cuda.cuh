// The sweep back on a GPU: the steps of the forward sweep from the last to the first, each reversed. Where one took
// a unit from its inputs, its gradient is now complete, as all that saw it came later: it goes on to those inputs. What
// has come to a unit so far waits in shared memory, where forward had the unit itself.
//
// Activations (to take slopes at) and parameters were computed before by dense products, and gradients are left for
// others: both [units, rows], so that a warp's 32 rows lie side by side. Nothing that is read there depends on the
// sweep: a step's share comes from memory while the step before it is at work.
#pragma once
#include "../univariate/map_cuda.cuh"
#include "net_cuda.cuh"

namespace fk::cuda {

// What a thread needs from memory for a step: a number for each of its units or parameters, of the first kSweepUnits;
// for a map, in warp 0, its value and the gradient of what it returned.
template <class S>
struct Share {
  SweepStep step;
  S value[kSide], z, g_x;

  __device__ __forceinline__ void fetch(const Net& net, const SweepArgs& a, const SweepStep& which, int64_t row,
                                        int warp) {
    step = which;
    z = g_x = 0;
#pragma unroll
    for (int j = 0; j < kSide; ++j) value[j] = 0;
    if (row >= a.rows) return;
    const bool maps = step.layer == net.n;
    if (maps && warp == 0) {
      z = static_cast<const S*>(a.z)[row * a.z_stride + step.count];
      if (a.grad_x) g_x = static_cast<const S*>(a.grad_x)[row * a.features + step.count];
    }
    const Layer& l = net.layer[maps ? net.n - 1 : step.layer];
    if (!l.units.value || (!maps && step.layer == net.n - 1)) return;
    const int64_t first = maps ? int64_t(step.count) * net.params : step.first;
    const int count = maps ? net.params : step.count;
    const int32_t* const order = maps ? nullptr : l.given.out_order;  // parameters of a feature are neighbours anyway
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int u = warp + j * kWarps;
      if (u < count)
        value[j] = static_cast<const S*>(l.units.value)[(order ? order[first + u] : first + u) * a.rows + row];
    }
  }
};

// Adds what units [first, first + count), whose gradients are in `partial`, bring to the gradients of their inputs. A
// warp owns the inputs it adds to, eight (of float) at a time: in one order, whatever the order of warps.
template <class S>
__device__ __forceinline__ void pass_on(const Layer& l, const SweepStep& step, const S* packed, const Shared<S>& shared,
                                        int warp, int lane) {
  constexpr int N = kVector<S>;
  const S* const g = shared.partial + lane;
  for (int k = warp * 2 * N; k < step.inputs; k += kWarps * 2 * N) {
    S* const to = shared.units + (l.in + k) * kRowsOfTile + lane;
    const S* weight = packed + l.packed + step.first * l.stride + k;
    const bool second = k + N < step.inputs;
    S sum[2 * N], w[2 * N] = {};
#pragma unroll
    for (int i = 0; i < 2 * N; ++i) sum[i] = k + i < step.inputs ? to[i * kRowsOfTile] : S(0);
#pragma unroll 4
    for (int u = 0; u < step.count; ++u, weight += l.stride) {
      load_vector(sizeof(S) == 8 ? DType::f64 : DType::f32, weight, 0, w);
      if (second) load_vector(sizeof(S) == 8 ? DType::f64 : DType::f32, weight, N, w + N);
#pragma unroll
      for (int i = 0; i < 2 * N; ++i) sum[i] += w[i] * g[u * kRowsOfTile];
    }
#pragma unroll
    for (int i = 0; i < 2 * N; ++i)
      if (k + i < step.inputs) to[i * kRowsOfTile] = sum[i];
  }
}

// Of doubles shared memory seldom holds two blocks.
template <class S, class Map>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 1 : 2)
    sweep_back_kernel(const __grid_constant__ Net net, const __grid_constant__ SweepArgs a,
                      const __grid_constant__ SweepWork w, const __grid_constant__ Map map) {
  FK_DYNAMIC_SHARED(bytes);
  const Shared<S> shared(bytes, net);
  const S* const packed = static_cast<const S*>(w.packed);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, P = net.params, pitch = P | 1;
  S* const params = shared.params + lane * pitch;
  for (int64_t tile = blockIdx.x; tile * kRowsOfTile < a.rows; tile += gridDim.x) {
    const int64_t row = tile * kRowsOfTile + lane;
    const bool valid = row < a.rows;
    const S g_ladj = warp == 0 && valid && a.grad_ladj ? static_cast<const S*>(a.grad_ladj)[row] : S(0);
    for (int i = int(threadIdx.x); i < net.units * kRowsOfTile; i += kThreads) shared.units[i] = 0;
    __syncthreads();
    Share<S> mine;
    mine.fetch(net, a, w.steps[w.n_steps - 1], row, warp);
    for (int64_t s = w.n_steps - 1; s >= 0; --s) {
      const SweepStep step = mine.step, next = w.steps[s > 0 ? s - 1 : 0];
      if (step.layer == net.n) {
        const Layer& last = net.layer[net.n - 1];
        const S z = mine.z, g_x = mine.g_x;
#pragma unroll
        for (int j = 0; j < kSide; ++j)
          if (warp + j * kWarps < P) params[warp + j * kWarps] = mine.value[j];
        for (int p = warp + kSide * kWarps; p < P; p += kWarps)
          params[p] =
              valid ? static_cast<const S*>(last.units.value)[(int64_t(step.count) * P + p) * a.rows + row] : S(0);
        mine.fetch(net, a, next, row, warp);
        __syncthreads();
        if (warp == 0) {
          const S g = g_x + shared.units[(net.layer[0].in + step.first) * kRowsOfTile + lane];
          const S g_z = map.grad(params, shared.sums + lane, kRowsOfTile, z, g, g_ladj);
          if (a.grad_z && valid) static_cast<S*>(a.grad_z)[row * a.features + step.count] = g_z;
        }
        __syncthreads();
        continue;
      }
      const Layer& l = net.layer[step.layer];
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int u = warp + j * kWarps;
        if (u >= step.count) break;
        const int64_t unit = step.first + u;
        S g = 0;
        if (step.layer == net.n - 1) {
          g = params[int(unit) % P];
        } else {
          if (l.out >= 0)
            g = shared.units[(l.out + unit) * kRowsOfTile + lane] *
                activation_slope(l.activation, mine.value[j], mine.value[j]);
          if (l.stream >= 0) {  // the stream passes a block by
            S& stream = shared.units[(l.stream + unit) * kRowsOfTile + lane];
            g += stream;
            stream = g;
          }
        }
        shared.partial[u * kRowsOfTile + lane] = g;
        if (l.units.grad && valid)
          static_cast<S*>(l.units.grad)[(l.given.out_order ? l.given.out_order[unit] : unit) * a.rows + row] = g;
      }
      mine.fetch(net, a, next, row, warp);
      __syncthreads();
      pass_on(l, step, packed, shared, warp, lane);
      __syncthreads();
    }
  }
}

}  // namespace fk::cuda
