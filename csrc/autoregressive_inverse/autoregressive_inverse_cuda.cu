// The autoregressive inverse on a GPU: all steps of the sweep in one launch, after one that puts the weights in degree
// order. A block owns 32 rows from the first feature to the last; what enters every layer waits in shared memory,
// [unit][row], and weights come through the caches, 16 bytes for a whole warp. What is due when depends on the plan of
// the masks alone: it arrives as a list of steps.
#include <type_traits>

#include "../common/launch.cuh"
#include "../common/storage.cuh"

#include "../affine/affine_math.h"
#include "../masked_linear/activation.h"
#include "../rqs/rqs_find.cuh"
#include "autoregressive_inverse.h"

namespace fk {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRowsOfTile = 32;
// Units that a warp computes side by side: an input comes from shared memory once for all of them.
constexpr int kSide = kSweepUnits / kWarps;

// A layer of the call. Offsets in units' rows of the block's shared memory; -1: there is none.
struct Layer {
  MaskedLayer given;
  int64_t packed, packed_bias, stride;  // places in `packed`, and the distance of units there
  int in, out, stream;  // what enters; where the output goes through `activation`; what it is added to, or put in
  bool adds;            // to the stream
  Activation activation;
};

struct Net {
  int n, params, sums, units;  // layers; numbers of a feature, and what its map needs beside; rows of shared memory
  bool residual;
  Layer layer[kMaxSweepLayers];
};

template <class S>
inline __host__ __device__ int64_t padded(int64_t n) {
  return (n + kVector<S> - 1) / kVector<S> * kVector<S>;
}

// How shared memory and `packed` are laid out; returns the numbers of the latter.
template <class S>
int64_t lay_out(const NetSpec& spec, const UnivariateMap& map, Net& net) {
  net.n = spec.n;
  net.params = map.params();
  net.sums = map.is_affine ? 0 : 2 * map.rqs.bins;
  net.residual = spec.residual;
  int64_t at = 0;
  int units = 0, stream = -1;
  const auto take = [&](int64_t n) {
    const int first = units;
    units += int(n);
    return first;
  };
  if (spec.residual) stream = take(spec.layers[0].n_out);
  for (int i = 0; i < spec.n; ++i) {
    const MaskedLayer& given = spec.layers[i];
    Layer& l = net.layer[i];
    l.given = given;
    l.stride = padded<S>(given.n_in);
    l.packed = at;
    l.packed_bias = at + l.stride * given.n_out;
    at = l.packed_bias + padded<S>(given.n_out);
    const bool last = i == spec.n - 1, reads_stream = spec.residual && last;
    l.in = reads_stream ? stream : take(given.n_in);
    l.out = l.stream = -1;
    l.adds = spec.closes_block(i);
    if (spec.residual && !last && i % 2 == 0) l.stream = stream;
    l.activation = spec.input_activation(i + 1);
  }
  for (int i = 0; i + 1 < spec.n; ++i)
    if (!(spec.residual && i + 1 == spec.n - 1)) net.layer[i].out = net.layer[i + 1].in;
  net.units = units;
  return at;
}

// ---- weights in degree order ----

// A block per unit: its weights, of inputs by degree and 0 where it does not see them, and its bias.
template <class S>
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ Net net, S* packed) {
  int64_t unit = blockIdx.x;
  int i = 0;
  for (; unit >= net.layer[i].given.n_out; ++i) unit -= net.layer[i].given.n_out;
  const Layer& l = net.layer[i];
  const int64_t from = l.given.out_order ? l.given.out_order[unit] : unit;
  const int64_t limit = l.given.limit ? l.given.limit[unit] : l.given.n_in;
  const S* const weight = static_cast<const S*>(l.given.weight) + from * l.given.weight_stride;
  S* const to = packed + l.packed + unit * l.stride;
  for (int64_t k = threadIdx.x; k < l.stride; k += kThreads)
    to[k] = k < limit ? weight[l.given.in_order ? l.given.in_order[k] : k] : S(0);
  if (threadIdx.x == 0) packed[l.packed_bias + unit] = l.given.bias ? static_cast<const S*>(l.given.bias)[from] : S(0);
}

// ---- the sweep ----

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

// The map of a feature, by one thread, from the row of its parameters, which it may overwrite.
template <class S>
struct AffineMap : Affine<S> {
  explicit AffineMap(const UnivariateMap& m) : Affine<S>(m.affine) {}

  __device__ __forceinline__ void operator()(S* params, S*, S v, S* out, S* ladj) const {
    const bool additive = this->scale == AffineScale::additive;
    this->eval(additive ? S(0) : params[0], params[additive ? 0 : 1], v, out, ladj);
  }
};
template <class S, bool Clip>
struct SplineMap : Constants<S, Clip> {
  explicit SplineMap(const UnivariateMap& m) : Constants<S, Clip>(m.rqs) {}

  __device__ __forceinline__ void operator()(S* params, S* sums, S v, S* out, S* ladj) const {
    const Constants<S, Clip>& c = *this;
    S top[2];
    eval_found(c, find(c, params, sums, kRowsOfTile, 1, v, top), true, v, out, ladj);
  }
};

template <class S>
struct Shared {
  S *units, *partial, *params, *sums;

  static size_t bytes(int64_t units, int params, int sums) {
    return sizeof(S) * size_t(kRowsOfTile) * size_t(units + kSweepUnits + (params | 1) + sums);
  }
  __device__ Shared(unsigned char* at, const Net& net) {
    units = reinterpret_cast<S*>(at);
    partial = units + net.units * kRowsOfTile;
    params = partial + kSweepUnits * kRowsOfTile;
    sums = params + (net.params | 1) * kRowsOfTile;
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
    for (int64_t s = 0; s < w.n_steps; ++s) {
      const SweepStep step = w.steps[s];
      if (step.layer == net.n) {
        if (warp == 0) {
          const S z = valid ? static_cast<const S*>(a.z)[row * a.z_stride + step.count] : S(0);
          S out, term;
          map(shared.params + lane * pitch, shared.sums + lane, z, &out, &term);
          if (valid) static_cast<S*>(a.x)[row * a.features + step.count] = out;
          shared.units[(net.layer[0].in + step.first) * kRowsOfTile + lane] = out;
          ladj.add(term);
        }
        __syncthreads();
        continue;
      }
      const Layer& l = net.layer[step.layer];
      const int parts = products(l, step, packed, shared, warp, lane);
      __syncthreads();
      for (int u = warp; u < step.count; u += kWarps) {
        const int64_t unit = step.first + u;
        S z = packed[l.packed_bias + unit];
        for (int p = 0; p < parts; ++p) z += shared.partial[(p * step.count + u) * kRowsOfTile + lane];
        if (l.given.add && valid)
          z += static_cast<const S*>(
              l.given.add)[row * l.given.add_stride + (l.given.out_order ? l.given.out_order[unit] : unit)];
        if (step.layer == net.n - 1) {
          shared.params[lane * pitch + int(unit % net.params)] = z;
          continue;
        }
        if (l.stream >= 0) {
          S& stream = shared.units[(l.stream + unit) * kRowsOfTile + lane];
          z = l.adds ? stream + z : z;
          stream = z;
        }
        if (l.out >= 0) shared.units[(l.out + unit) * kRowsOfTile + lane] = activate(l.activation, z);
      }
      __syncthreads();
    }
    if (warp == 0 && valid) static_cast<S*>(a.ladj)[row] = ladj.sum + ladj.lost;
  }
}

template <class S>
void run(const SweepArgs& a, const SweepWork& w, const CudaStream& on) {
  Net net = {};
  lay_out<S>(a.net, a.map, net);
  int64_t units = 0;
  for (int i = 0; i < net.n; ++i) units += net.layer[i].given.n_out;
  launch(on, unsigned(units), kThreads, 0, pack_kernel<S>, net, static_cast<S*>(w.packed));
  const size_t shared = Shared<S>::bytes(net.units, net.params, net.sums);
  const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, on.device) / int64_t(shared + 1024);
  const int64_t resident = room < 1 ? 1 : room < 8 ? room : 8;
  const int64_t most = attribute(cudaDevAttrMultiProcessorCount, on.device) * resident;
  const int64_t tiles = (a.rows + kRowsOfTile - 1) / kRowsOfTile;
  const auto sweep = [&](const auto& map) {
    using Map = std::decay_t<decltype(map)>;
    launch(on, unsigned(tiles < most ? tiles : most), kThreads, shared, sweep_kernel<S, Map>, net, a, w, map);
  };
  if (a.map.is_affine)
    sweep(AffineMap<S>(a.map));
  else if (a.map.rqs.clip_size != 0)
    sweep(SplineMap<S, true>(a.map));
  else
    sweep(SplineMap<S, false>(a.map));
}

}  // namespace
}  // namespace cuda

int64_t sweep_packed(const NetSpec& spec) {
  cuda::Net net = {};
  return cuda::lay_out<float>(spec, {}, net);  // of double it is no more: its vectors are shorter
}

bool sweep_fits(int64_t units, int params, int bins, int type, int device) {
  const size_t bytes = DType(type) == DType::f64 ? cuda::Shared<double>::bytes(units, params, 2 * bins)
                                                 : cuda::Shared<float>::bytes(units, params, 2 * bins);
  return int64_t(bytes) <= attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

void sweep_fwd(const SweepArgs& a, const SweepWork& w, const CudaStream& on) {
  if (a.net.n > kMaxSweepLayers) throw std::invalid_argument("sweep: a GPU's has at most 16 layers");
  cuda::by_arithmetic(a.type, [&](auto s) { cuda::run<decltype(s)>(a, w, on); });
}

}  // namespace fk
