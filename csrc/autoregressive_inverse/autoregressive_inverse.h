// Launchers of the inverse of an autoregressive layer, on raw pointers. No torch, no Python.
#pragma once
#include "../flow_layer/flow_layer.h"

namespace fk {

// Solves z_d = f(x_d; params_d(x_<d)) for x, where the masked net returns [features, P] parameters a row; `map` is f's
// inverse. The net's first layer orders the features.
struct SweepArgs {
  NetSpec net;
  UnivariateMap map;
  DType type;  // f32 or f64
  int64_t rows, features;
  const void* z;  // [rows, features], rows z_stride apart
  int64_t z_stride;
  void* x;             // [rows, features]: fwd writes it, bwd reads it
  void* ladj;          // [rows], of z -> x
  const void* grad_x;  // bwd, contiguous; null: zero
  const void* grad_ladj;
  void* grad_z;
};

void sweep_fwd(const SweepArgs&, int threads);
void sweep_bwd(const SweepArgs&, int threads);

}  // namespace fk
