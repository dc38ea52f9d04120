// The autoregressive inverse on a GPU: all steps of the sweep in one launch, after one that puts the weights in degree
// order. A block owns 32 rows from the first feature to the last; what enters every layer waits in shared memory,
// [unit][row], and weights come through the caches, 16 bytes for a whole warp. What is due when depends on the plan of
// the masks alone: it arrives as a list of steps. The sweep back, in back_cuda.cuh, walks the same list the other way.
#include <type_traits>

#include "../common/launch.cuh"

#include "back_cuda.cuh"
#include "circle_shift.h"
#include "../univariate/map_cuda.cuh"
#include "net_cuda.cuh"

namespace fk {
namespace cuda {
namespace {

// A compensated sum: a row's ladj may have a thousand terms.
template <class S>
struct LadjSum {
  S sum = 0, lost = 0;
  __device__ __forceinline__ void add(S v) {
    const S s = sum + v, b = s - sum;
    lost += (sum - (s - b)) + (v - b);
    sum = s;
  }
};

// Sums over parts of the inputs, unit by unit: warps share units first, then inputs. Returns how many parts there are.
template <class S>
__device__ __forceinline__ int products(const Layer& l, const SweepStep& step, const S* packed, const Shared<S>& shared,
                                        int warp, int lane) {
  constexpr int N = kVector<S>;
  const int groups = (step.count + kSide - 1) / kSide, parts = kWarps / groups;
  const int group = warp % groups, part = warp / groups;
  if (part >= parts) return parts;
  const int chunks = step.inputs / N, begin = chunks * part / parts, end = chunks * (part + 1) / parts;
  const S* const in = shared.units + l.in * kRowsOfTile + lane;
  const S* weight[kSide];
  S sum[kSide];
#pragma unroll
  for (int u = 0; u < kSide; ++u) {  // those past the last are done for nothing
    const int unit = group * kSide + u < step.count ? group * kSide + u : step.count - 1;
    weight[u] = packed + l.packed + (step.first + unit) * l.stride;
    sum[u] = 0;
  }
#pragma unroll 2
  for (int k = begin; k < end; ++k) {
    S a[N];
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] = in[(k * N + i) * kRowsOfTile];
#pragma unroll
    for (int u = 0; u < kSide; ++u) {
      S w[N];
      load_vector(sizeof(S) == 8 ? DType::f64 : DType::f32, weight[u], k * N, w);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[u] += w[i] * a[i];
    }
  }
  if (part == parts - 1)
    for (int k = chunks * N; k < step.inputs; ++k)
#pragma unroll
      for (int u = 0; u < kSide; ++u) sum[u] += weight[u][k] * in[k * kRowsOfTile];
#pragma unroll
  for (int u = 0; u < kSide; ++u)
    if (group * kSide + u < step.count)
      shared.partial[(part * step.count + group * kSide + u) * kRowsOfTile + lane] = sum[u];
  return parts;
}

template <class S, class Map>
__global__ void __launch_bounds__(kThreads, 2)
    sweep_kernel(const __grid_constant__ Net net, const __grid_constant__ SweepArgs a,
                 const __grid_constant__ SweepWork w, const __grid_constant__ Map map) {
  FK_DYNAMIC_SHARED(bytes);
  const Shared<S> shared(bytes, net);
  const S* const packed = static_cast<const S*>(w.packed);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, pitch = net.params | 1;
  for (int64_t tile = blockIdx.x; tile * kRowsOfTile < a.rows; tile += gridDim.x) {
    const int64_t row = tile * kRowsOfTile + lane;
    const bool valid = row < a.rows;
    LadjSum<S> ladj;
    const auto value_for = [&](const SweepStep& step) {
      return warp == 0 && valid && step.layer == net.n ? static_cast<const S*>(a.z)[row * a.z_stride + step.count]
                                                       : S(0);
    };
    SweepStep next = w.steps[0];
    S next_z = value_for(next);
    for (int64_t s = 0; s < w.n_steps; ++s) {
      const SweepStep step = next;
      const S z = next_z;
      next = w.steps[s + 1 < w.n_steps ? s + 1 : s];  // on its way while this one is at work
      if (step.layer == net.n) {
        if (warp == 0) {
          S out, term;
          map(shared.params + lane * pitch, shared.sums + lane, kRowsOfTile, z, &out, &term);
          if (a.shift.by != 0) out = shifted(a.shift, out);
          if (valid) static_cast<S*>(a.x)[row * a.features + step.count] = out;
          shared.units[(net.layer[0].in + step.first) * kRowsOfTile + lane] = out;
          ladj.add(term);
        }
        next_z = value_for(next);
        __syncthreads();
        continue;
      }
      const Layer& l = net.layer[step.layer];
      const int parts = products(l, step, packed, shared, warp, lane);
      next_z = value_for(next);
      __syncthreads();
      for (int u = warp; u < step.count; u += kWarps) {
        const int64_t unit = step.first + u;
        S sum = packed[l.packed_bias + unit];
        for (int p = 0; p < parts; ++p) sum += shared.partial[(p * step.count + u) * kRowsOfTile + lane];
        if (l.given.add && valid)
          sum += static_cast<const S*>(
              l.given.add)[row * l.given.add_stride + (l.given.out_order ? l.given.out_order[unit] : unit)];
        if (step.layer == net.n - 1) {
          shared.params[lane * pitch + int(unit) % net.params] = sum;
          continue;
        }
        if (l.stream >= 0) {
          S& stream = shared.units[(l.stream + unit) * kRowsOfTile + lane];
          sum = l.adds ? stream + sum : sum;
          stream = sum;
        }
        if (l.out >= 0) shared.units[(l.out + unit) * kRowsOfTile + lane] = activate(l.activation, sum);
      }
      __syncthreads();
    }
    if (warp == 0 && valid) static_cast<S*>(a.ladj)[row] = ladj.sum + ladj.lost;
  }
}

// `back`: what the sweep back reads and leaves of every layer; null: forward.
template <class S>
void run(const SweepArgs& a, const SweepWork& w, const LayerUnits* back, const CudaStream& on) {
  Net net = {};
  lay_out<S>(a.net, a.map, net);
  int64_t units = 0;
  for (int i = 0; i < net.n; ++i) {
    units += net.layer[i].given.n_out;
    if (back) net.layer[i].units = back[i];
  }
  launch(on, unsigned(units), kThreads, 0, pack_kernel<S>, net, static_cast<S*>(w.packed));
  const size_t shared = Shared<S>::bytes(net.units, net.params, net.sums);
  const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, on.device) / int64_t(shared + 1024);
  const int64_t resident = room < 1 ? 1 : room < 8 ? room : 8;
  const int64_t most = attribute(cudaDevAttrMultiProcessorCount, on.device) * resident;
  const int64_t tiles = (a.rows + kRowsOfTile - 1) / kRowsOfTile;
  const auto sweep = [&](const auto& map) {
    using Map = std::decay_t<decltype(map)>;
    const auto kernel = back ? sweep_back_kernel<S, Map> : sweep_kernel<S, Map>;
    launch(on, unsigned(tiles < most ? tiles : most), kThreads, shared, kernel, net, a, w, map);
  };
  by_map<S>(a.map, sweep);
}

}  // namespace
}  // namespace cuda

int64_t sweep_packed(const NetSpec& spec) {
  cuda::Net net = {};
  return cuda::lay_out<float>(spec, {}, net);  // of double it is no more: its vectors are shorter
}

bool sweep_fits(int64_t units, const UnivariateMap& map, int type, int device) {
  const int numbers = map.visit([](const auto& spec) { return shared_numbers(spec); });
  const size_t bytes = DType(type) == DType::f64 ? cuda::Shared<double>::bytes(units, map.params(), numbers)
                                                 : cuda::Shared<float>::bytes(units, map.params(), numbers);
  return int64_t(bytes) <= attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

void sweep_fwd(const SweepArgs& a, const SweepWork& w, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run<decltype(s)>(a, w, nullptr, on); });
}
void sweep_bwd(const SweepArgs& a, const SweepWork& w, const LayerUnits* units, const CudaStream& on) {
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run<decltype(s)>(a, w, units, on); });
}

}  // namespace fk
