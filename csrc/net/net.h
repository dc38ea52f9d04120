// Launchers of masked layers and of whole networks of them, on raw pointers. No torch, no Python.
#pragma once
#include <stdint.h>

#include "../common/tensor.h"

namespace fk {

enum class Activation : int { identity = 0, relu, leaky_relu, elu, gelu, silu, tanh };
constexpr const char* kActivationNames[] = {"identity", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh"};

// What enters a layer that opens a residual block is act(z * scale + shift), [n_in] each.
struct InputScale {
  const void *scale, *shift;
  void *grad_scale, *grad_shift;  // bwd; null: not wanted
};

// One layer: z = (W o M) a + b [+ add], [z <- z * gate]. Null orders: units are in order already; null limit: nothing
// is masked.
struct MaskedLayer {
  const void* weight;  // [n_out, n_in] with rows weight_stride apart
  int64_t weight_stride;
  const void* bias;  // [n_out] or null
  int64_t n_in, n_out;
  const int32_t* in_order;   // [n_in], inputs by degree
  const int32_t* out_order;  // [n_out], outputs by degree
  const int32_t* limit;      // [n_out], by degree: how many of the ordered inputs each output sees
  const void* add;           // [rows, n_out] with rows add_stride apart (0: one for all), or null
  int64_t add_stride;
  const void* gate;  // the same; only for layers that close a residual block
  int64_t gate_stride;
  InputScale* scaled;  // null: what enters is act(z)
  void* kept;          // [rows, n_in] in degree order: what enters this layer, written by fwd, read by bwd; or null
  void* grad_weight;   // bwd, contiguous; null: not wanted
  void* grad_bias;
  void* grad_add;
  void* grad_gate;
};

constexpr int kMaxLayers = 64;

// A network of masked layers. Plain: a <- act(z) between layers. Residual: an initial layer, blocks of two layers,
// h <- h + gate * (W2 act(W1 act(h * scale + shift))), and a final one. Hidden layers that meet must have equal orders.
struct NetSpec {
  const MaskedLayer* layers;
  int n;
  bool residual;
  Activation activation;  // between layers
  Activation last;        // after the last

  // Applied to what enters layer i; for i = n, to what leaves the net.
  Activation input_activation(int i) const {
    if (i == n) return last;
    return i == 0 || (residual && i == n - 1) ? Activation::identity : activation;
  }
  bool opens_block(int i) const { return residual && i > 0 && i < n - 1 && i % 2 == 1; }
  bool closes_block(int i) const { return residual && i > 0 && i < n - 1 && i % 2 == 0; }
  bool scaled() const {
    for (int i = 0; i < n; ++i)
      if (layers[i].scaled) return true;
    return false;
  }
  int64_t n_out() const { return layers[n - 1].n_out; }
  int64_t widths() const {  // numbers that a row has between layers
    int64_t sum = 0;
    for (int i = 0; i < n; ++i) sum += layers[i].n_in + layers[i].n_out;
    return sum;
  }
  int64_t work() const {  // multiply-adds a row, masked ones too
    int64_t sum = 0;
    for (int i = 0; i < n; ++i) sum += layers[i].n_in * layers[i].n_out;
    return sum;
  }
};

struct NetArgs {
  NetSpec net;
  DType type;  // f32 or f64
  int64_t rows;
  const void* x;
  int64_t x_stride;
  void* y;             // [rows, n_out]; bwd: what forward returned, or null: computed again where it is needed
  const void* grad_y;  // bwd, contiguous
  void* grad_x;        // null: not wanted
};

void net_fwd(const NetArgs&, int threads);
void net_bwd(const NetArgs&, int threads);

}  // namespace fk
