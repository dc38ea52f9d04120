// A call of the op of a map whose parameters are rows of one tensor, on raw pointers. No torch, no Python.
#pragma once
#include "../common/view.h"

namespace fk {

// x, y, grad_y, grad_x: [rows, features]; params, grad_params: [rows, features, P];
// ladj, grad_ladj: [rows], float (double where x is double). Outputs are contiguous.
struct MapArgs {
  LeadingDims rows;  // and the row strides of x and params
  int64_t features;
  int64_t x_stride;  // between features, in elements
  int64_t params_stride;
  DType x_type, params_type;
  const void* x;
  const void* params;
  void* y;  // fwd
  void* ladj;
  const void* grad_y;  // bwd; null: zero
  const void* grad_ladj;
  void* grad_x;
  void* grad_params;

  // Element (row, d) lies at (row * features + d) strides in both inputs, and x is dense.
  bool evenly_spaced() const {
    return rows.ndim == 1 && x_stride == 1 && rows.stride_a[0] == features &&
           rows.stride_b[0] == features * params_stride;
  }
  bool empty() const { return features == 0 || rows.count() == 0; }
};

// What is checked here is all that a kernel relies on. grad_y and grad_ladj may be none.
MapArgs map_fwd_args(const std::string& op, int params_of_each, const View& x, const View& params, const View& y,
                     const View& ladj);
MapArgs map_bwd_args(const std::string& op, int params_of_each, const View& x, const View& params, const View& grad_y,
                     const View& grad_ladj, const View& grad_x, const View& grad_params);

}  // namespace fk
