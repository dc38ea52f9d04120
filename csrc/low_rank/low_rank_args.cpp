// From what torch says of the tensors to a call of planar, radial or Sylvester maps, checked for what would corrupt
// memory.
#include "low_rank.h"

namespace fk {

namespace {

constexpr int64_t kBytesOfWork = 64;  // what a tile holds of a number, of any of its kinds
constexpr const char* kNames[3][kMostLowRankParams] = {
    {"u", "w", "b", ""}, {"center", "alpha", "beta", ""}, {"q", "r", "s", "b"}};

std::string named(const char* name) { return std::string("low_rank: ") + name; }

LowRankArgs of_input(const LowRankSettings& s, const View& x, const LowRankViews& params, int n_params) {
  check_number("low_rank: kind", s.kind, 0, int(LowRank::sylvester));
  check_number("low_rank: activation", s.activation, 0, int(LowRankActivation::leaky_relu));
  check_number("low_rank: layers", s.layers, 1, INT32_MAX);
  check_given("low_rank: x", x);
  if (x.ndim != 2) refuse("low_rank: x", "[rows, features]", text_of(x.size, x.ndim));
  if (x.type != DType::f64) check_type("low_rank: x", x, DType::f32);
  LowRankArgs a = {};
  a.type = x.type, a.kind = LowRank(s.kind), a.activation = LowRankActivation(s.activation);
  a.negative_slope = s.negative_slope, a.alpha_is_abs = s.alpha_is_abs, a.inverse = s.inverse, a.shared = s.shared;
  a.rows = x.size[0], a.features = x.size[1], a.layers = s.layers, a.width = s.width;
  check_number("low_rank: rows", a.rows, 1, INT64_MAX);
  check_number("low_rank: features", a.features, 1, INT32_MAX);
  check_rows("low_rank: x", x, a.type, a.rows, a.features);
  a.x = x.data, a.x_stride = x.stride[0];
  const int64_t D = a.features, M = a.width;
  check_number("low_rank: width", M, 1, a.kind == LowRank::sylvester ? D : 1);
  switch (a.kind) {
    case LowRank::planar: a.n_params = 3, a.size[0] = D, a.size[1] = D, a.size[2] = 1; break;
    case LowRank::radial: a.n_params = 3, a.size[0] = D, a.size[1] = 1, a.size[2] = 1; break;
    default: a.n_params = 4, a.size[0] = D * M, a.size[1] = M * M, a.size[2] = M * M, a.size[3] = M;
  }
  check_number("low_rank: the number of parameters", n_params, a.n_params, a.n_params);
  checked_product("low_rank: rows times numbers of a row", {a.rows, a.layers, a.numbers() + D, kBytesOfWork});
  for (int i = 0; i < n_params; ++i) {
    const View& v = params.of[i];
    check_rows(named(kNames[s.kind][i]).c_str(), v, a.type, a.shared ? 1 : a.rows, a.layers * a.size[i]);
    a.params[i] = v.data, a.param_stride[i] = v.stride[0];
  }
  return a;
}

}  // namespace

LowRankArgs low_rank_fwd_args(const LowRankSettings& s, const View& x, const LowRankViews& params, int n_params,
                              const View& y, const View& ladj) {
  LowRankArgs a = of_input(s, x, params, n_params);
  check_dense("low_rank: y", y, a.type, a.rows * a.features);
  check_dense("low_rank: ladj", ladj, a.type, a.rows);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

LowRankArgs low_rank_bwd_args(const LowRankSettings& s, const View& x, const LowRankViews& params, int n_params,
                              const View& grad_y, const View& grad_ladj, const View& grad_x,
                              const LowRankViews& grads) {
  LowRankArgs a = of_input(s, x, params, n_params);
  const int64_t of_x = a.rows * a.features;
  if (grad_y.given()) check_dense("low_rank: grad_y", grad_y, a.type, of_x);
  if (grad_ladj.given()) check_dense("low_rank: grad_ladj", grad_ladj, a.type, a.rows);
  if (grad_x.given()) check_dense("low_rank: grad_x", grad_x, a.type, of_x);
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data, a.grad_x = grad_x.data;
  for (int i = 0; i < n_params; ++i) {
    const View& v = grads.of[i];
    const std::string name = named("the gradient of ") + kNames[s.kind][i];
    if (v.given()) check_dense(name.c_str(), v, a.type, (a.shared ? 1 : a.rows) * a.layers * a.size[i]);
    a.grad_params[i] = v.data;
  }
  return a;
}

}  // namespace fk
