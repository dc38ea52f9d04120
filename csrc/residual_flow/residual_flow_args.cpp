// From what torch says of the tensors to a call of a residual block, checked for what would corrupt memory.
#include "residual_flow.h"

namespace fk {

namespace {

constexpr int64_t kMostWeights = int64_t(1) << 40;  // of a layer; times what a tile holds of it still a size
constexpr int64_t kBytesOfWork = 1024;

}  // namespace

ResidualLayers::ResidualLayers(int64_t rows, int64_t features, int64_t layers, const ResidualSettings& s) {
  check_number("residual_flow: rows", rows, 1, INT64_MAX);  // tiles divide by their number
  const bool matrices = !s.estimated || s.inverse;
  check_number("residual_flow: features", features, 1, matrices ? kMostResidualFeatures : INT32_MAX);
  check_number("residual_flow: the number of layers", layers, 1, kMaxLayers);
  check_number("residual_flow: activation", s.activation, 0, int(Contraction::tanh));
  check_number("residual_flow: steps", s.steps, 1, INT32_MAX);
  layers_.reserve(size_t(layers));
  args.activation = Contraction(s.activation), args.preactivated = s.preactivated, args.inverse = s.inverse;
  args.steps = s.steps, args.least = s.least;
  args.rows = rows, args.features = features;
  args.layers = layers_.data(), args.n = int(layers);
}

void ResidualLayers::add(const ResidualViews& v) {
  const View& weight = v.weight;
  if (int(layers_.size()) == args.n) refuse("residual_flow: layers", std::to_string(args.n), "more");
  const int64_t n_in = layers_.empty() ? args.features : layers_.back().n_out;
  check_given("residual_flow: weight", weight);
  if (weight.ndim != 2) refuse("residual_flow: weight", "[out, in]", text_of(weight.size, weight.ndim));
  const int64_t n_out = weight.size[0];
  check_number("residual_flow: rows of weight", n_out, 1, INT32_MAX);
  check_number("residual_flow: the number of weights", n_out * n_in, 1, kMostWeights);
  if (layers_.empty()) {
    if (weight.type != DType::f64) check_type("residual_flow: weight", weight, DType::f32);
    args.type = weight.type;
  }
  check_rows("residual_flow: weight", weight, args.type, n_out, n_in);
  check_contiguous("residual_flow: bias", v.bias, args.type, {n_out});
  if (v.grad_weight.given()) check_contiguous("residual_flow: grad_weight", v.grad_weight, args.type, {n_out, n_in});
  if (v.grad_bias.given()) check_contiguous("residual_flow: grad_bias", v.grad_bias, args.type, {n_out});
  layers_.push_back({weight.data, weight.stride[0], v.bias.data, n_in, n_out, v.grad_weight.data, v.grad_bias.data});
}

void ResidualLayers::close(const View& betas, const View& grad_betas) {
  if (int(layers_.size()) != args.n)
    refuse("residual_flow: layers", std::to_string(args.n), std::to_string(layers_.size()));
  check_number("residual_flow: rows of the last weight", layers_.back().n_out, args.features, args.features);
  if (betas.given()) {
    if (args.activation != Contraction::lipswish) refuse("residual_flow: betas", "those of a lipswish", "others");
    check_contiguous("residual_flow: betas", betas, args.type, {args.activations()});
  }
  if (grad_betas.given()) {
    check_given("residual_flow: betas, whose gradient is wanted,", betas);
    check_contiguous("residual_flow: grad_betas", grad_betas, args.type, {args.activations()});
  }
  args.betas = betas.data, args.grad_betas = grad_betas.data;
  checked_product("residual_flow: rows times multiply-adds of a row",
                  {args.rows, args.work(), args.features, kBytesOfWork});
}

// How many weights there are without the zeros at the end: a graph has as many as might be drawn. Here, so that rows
// are dealt out to threads, and summed, as without them.
template <class S>
static int64_t terms_of(const void* weights, int64_t terms) {
  while (terms > 1 && static_cast<const S*>(weights)[terms - 1] == S(0)) --terms;
  return terms;
}

void ResidualLayers::estimate(const View& weights, const View& noise, const View& inner) {
  check_given("residual_flow: weights", weights);
  if (weights.ndim != 1) refuse("residual_flow: weights", "[terms]", text_of(weights.size, weights.ndim));
  args.terms = weights.size[0];
  check_number("residual_flow: terms", args.terms, 1, INT32_MAX);
  check_contiguous("residual_flow: weights", weights, args.type, {args.terms});
  check_given("residual_flow: noise", noise);
  if (noise.ndim != 3) refuse("residual_flow: noise", "[draws, rows, features]", text_of(noise.size, noise.ndim));
  args.draws = noise.size[0];
  check_number("residual_flow: draws", args.draws, 1, INT32_MAX);
  check_contiguous("residual_flow: noise", noise, args.type, {args.draws, args.rows, args.features});
  if (inner.given()) check_contiguous("residual_flow: inner", inner, args.type, {args.draws, args.rows, args.features});
  args.weights = weights.data, args.noise = noise.data, args.inner = inner.data;
  checked_product("residual_flow: rows times multiply-adds of a row",
                  {args.rows, args.work(), args.draws, args.terms, kBytesOfWork});
  args.terms =
      args.type == DType::f64 ? terms_of<double>(args.weights, args.terms) : terms_of<float>(args.weights, args.terms);
}

static ResidualArgs of_input(const ResidualLayers& net, const View& x) {
  ResidualArgs a = net.args;
  check_rows("residual_flow: x", x, a.type, a.rows, a.features);
  a.x = x.data, a.x_stride = x.stride[0];
  return a;
}

ResidualArgs residual_fwd_args(const ResidualLayers& net, const View& x, const View& y, const View& ladj) {
  ResidualArgs a = of_input(net, x);
  check_dense("residual_flow: y", y, a.type, a.rows * a.features);
  check_dense("residual_flow: ladj", ladj, a.type, a.rows);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

ResidualArgs residual_bwd_args(const ResidualLayers& net, const View& x, const View& y, const View& grad_y,
                               const View& grad_ladj, const View& grad_x) {
  ResidualArgs a = of_input(net, x);
  const int64_t of_x = a.rows * a.features;
  if (a.inverse) check_dense("residual_flow: y", y, a.type, of_x);
  if (a.estimated() && !a.inner) refuse("residual_flow: inner", "a tensor", "None");
  if (grad_y.given()) check_dense("residual_flow: grad_y", grad_y, a.type, of_x);
  if (grad_ladj.given()) check_dense("residual_flow: grad_ladj", grad_ladj, a.type, a.rows);
  if (grad_x.given()) check_dense("residual_flow: grad_x", grad_x, a.type, of_x);
  a.y = a.inverse ? y.data : nullptr;
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data, a.grad_x = grad_x.data;
  return a;
}

}  // namespace fk
