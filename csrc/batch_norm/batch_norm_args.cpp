// From what torch says of the tensors to a call of batch norm, checked for what would corrupt memory.
#include "batch_norm.h"

namespace fk {

BatchNormArgs batch_norm_fwd_args(int activation, double eps, const View& x, const View& weight, const View& bias,
                                  const View& y, const View& mean, const View& var) {
  check_given("batch_norm: x", x);
  if (x.ndim != 2) refuse("batch_norm: x", "[rows, columns]", text_of(x.size, x.ndim));
  if (x.type != DType::f64) check_type("batch_norm: x", x, DType::f32);
  check_number("batch_norm: activation", activation, 0, int(Activation::tanh));
  BatchNormArgs a = {};
  a.type = x.type, a.activation = Activation(activation), a.eps = eps;
  a.rows = x.size[0], a.columns = x.size[1];
  check_number("batch_norm: rows", a.rows, 1, INT64_MAX);
  check_number("batch_norm: columns", a.columns, 1, INT32_MAX);
  checked_product("batch_norm: elements", {a.rows, a.columns, 64});
  check_contiguous("batch_norm: x", x, a.type, {a.rows, a.columns});
  check_contiguous("batch_norm: weight", weight, a.type, {a.columns});
  check_contiguous("batch_norm: bias", bias, a.type, {a.columns});
  check_contiguous("batch_norm: y", y, a.type, {a.rows, a.columns});
  check_contiguous("batch_norm: mean", mean, a.type, {a.columns});
  check_contiguous("batch_norm: var", var, a.type, {a.columns});
  a.x = x.data, a.weight = weight.data, a.bias = bias.data;
  a.y = y.data, a.mean = mean.data, a.var = var.data;
  return a;
}

BatchNormArgs batch_norm_bwd_args(int activation, double eps, const View& x, const View& weight, const View& bias,
                                  const View& y, const View& mean, const View& var, const View& grad_y,
                                  const View& grad_x, const View& grad_weight, const View& grad_bias) {
  BatchNormArgs a = batch_norm_fwd_args(activation, eps, x, weight, bias, y, mean, var);
  check_contiguous("batch_norm: grad_y", grad_y, a.type, {a.rows, a.columns});
  if (grad_x.given()) check_contiguous("batch_norm: grad_x", grad_x, a.type, {a.rows, a.columns});
  if (grad_weight.given()) check_contiguous("batch_norm: grad_weight", grad_weight, a.type, {a.columns});
  if (grad_bias.given()) check_contiguous("batch_norm: grad_bias", grad_bias, a.type, {a.columns});
  a.grad_y = grad_y.data, a.grad_x = grad_x.data;
  a.grad_weight = grad_weight.data, a.grad_bias = grad_bias.data;
  return a;
}

}  // namespace fk
