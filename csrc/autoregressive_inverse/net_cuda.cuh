// A masked net on a GPU, as both sweeps see it: weights in degree order, and a tile of 32 rows of what enters its
// layers in a block's shared memory, [unit][row].
#pragma once
#include "../common/storage.cuh"

#include "../net/activation.h"
#include "autoregressive_inverse.h"

namespace fk::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRowsOfTile = 32;
// Units that a warp computes side by side: an input comes from shared memory once for all of them.
constexpr int kSide = kSweepUnits / kWarps;

// What a GPU reads of a MaskedLayer: a launch hands over 4 KB, and a map's constants are among them.
struct GivenLayer {
  const void* weight;
  int64_t weight_stride;
  const void* bias;
  int64_t n_in, n_out;
  const int32_t *in_order, *out_order, *limit;
  const void* add;
  int64_t add_stride;
};

// A layer of the call. Offsets in units' rows of the block's shared memory; -1: there is none.
struct Layer {
  GivenLayer given;
  int64_t packed, packed_bias, stride;  // places in `packed`, and the distance of units there
  int in, out, stream;  // what enters; where the output goes through `activation`; what it is added to, or put in
  bool adds;            // to the stream
  Activation activation;
  LayerUnits units;  // of the sweep back
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
  net.sums = map.visit([](const auto& spec) { return shared_numbers(spec); });
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
    l.given = {given.weight,   given.weight_stride, given.bias,  given.n_in, given.n_out,
               given.in_order, given.out_order,     given.limit, given.add,  given.add_stride};
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

// ---- a block's shared memory ----

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

}  // namespace fk::cuda
