// Launchers of whole flow layers, on raw pointers: a conditioner, a univariate map of each feature with the parameters
// the conditioner returns, and the log-determinant. No torch, no Python.
#pragma once
#include <vector>

#include "../net/net_args.h"
#include "../univariate/map.h"

namespace fk {

// Which features of a layer its net sees, and which are mapped: distinct ones of so many, checked once for all calls.
struct Columns {
  const int64_t features;
  const std::vector<int32_t> inputs, outputs;

  Columns(int64_t features, std::vector<int32_t> inputs, std::vector<int32_t> outputs);
};

// The features `columns` of x are mapped, given the features `in_columns`; the others stay as they are. The net returns
// [n_columns, P] parameters a row. A masked net may see the features it maps: it is then autoregressive.
struct FlowLayerArgs {
  NetSpec net;
  UnivariateMap map;
  DType type;  // f32 or f64
  int64_t rows, features;
  const void* x;  // [rows, features], rows x_stride apart
  int64_t x_stride;
  const int32_t* in_columns;  // [n_in of the first layer]
  const int32_t* columns;     // [n_columns]
  int64_t n_columns;
  void* y;             // [rows, features]
  void* ladj;          // [rows]
  const void* grad_y;  // bwd, contiguous; null: zero
  const void* grad_ladj;
  void* grad_x;  // null: not wanted
};

FlowLayerArgs flow_layer_fwd_args(const NetLayers&, const UnivariateMap&, const Columns&, const View& x, const View& y,
                                  const View& ladj);
FlowLayerArgs flow_layer_bwd_args(const NetLayers&, const UnivariateMap&, const Columns&, const View& x,
                                  const View& grad_y, const View& grad_ladj, const View& grad_x);

void flow_layer_fwd(const FlowLayerArgs&, int threads);
void flow_layer_bwd(const FlowLayerArgs&, int threads);

}  // namespace fk
