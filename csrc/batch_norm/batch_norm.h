// Launchers of batch norm by the batch's own statistics, and the activation behind it, on raw pointers. No torch, no
// Python.
#pragma once
#include "../common/view.h"
#include "../net/net.h"

namespace fk {

// y = act((x - mean) / sqrt(var + eps) * weight + bias), mean and var (biased) over the rows of each column.
struct BatchNormArgs {
  DType type;  // f32 or f64, of all tensors
  Activation activation;
  double eps;
  int64_t rows, columns;
  const void *x, *weight, *bias;
  void *y, *mean, *var;  // bwd: what forward returned
  const void* grad_y;    // bwd
  void *grad_x, *grad_weight, *grad_bias;
};

// All tensors are contiguous: x, y and their gradients [rows, columns], the others [columns].
BatchNormArgs batch_norm_fwd_args(int activation, double eps, const View& x, const View& weight, const View& bias,
                                  const View& y, const View& mean, const View& var);
BatchNormArgs batch_norm_bwd_args(int activation, double eps, const View& x, const View& weight, const View& bias,
                                  const View& y, const View& mean, const View& var, const View& grad_y,
                                  const View& grad_x, const View& grad_weight, const View& grad_bias);

void batch_norm_fwd(const BatchNormArgs&, int threads);
void batch_norm_bwd(const BatchNormArgs&, int threads);

}  // namespace fk
