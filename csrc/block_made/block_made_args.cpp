// From what torch says of the tensors to a call of block autoregressive maps, checked for what would corrupt memory.
#include "block_made.h"

namespace fk {

namespace {

constexpr int64_t kMostWeights = int64_t(1) << 48;  // of a layer; times the bytes of a number still a size
constexpr int64_t kBytesOfWork = 64;                // what a tile holds of a unit, of any of its kinds

}  // namespace

BlockLayers::BlockLayers(int64_t rows, int64_t features, int64_t layers, int activation, int residual, bool inverse,
                         double eps) {
  check_number("block_made: rows", rows, 1, INT64_MAX);  // tiles divide by their number
  check_number("block_made: features", features, 1, INT32_MAX);
  check_number("block_made: the number of layers", layers, 1, kMaxLayers);
  check_number("block_made: activation", activation, 0, int(Increasing::leaky_relu));
  check_number("block_made: residual", residual, 0, int(BlockResidual::gated));
  layers_.reserve(size_t(layers));
  args.activation = Increasing(activation), args.residual = BlockResidual(residual), args.inverse = inverse;
  args.eps = eps;
  args.rows = rows, args.features = features;
  args.layers = layers_.data(), args.n = int(layers);
}

void BlockLayers::add(const BlockViews& v) {
  const View& weight = v.weight;
  const int64_t D = args.features, before = layers_.empty() ? 1 : layers_.back().after;
  if (int(layers_.size()) == args.n) refuse("block_made: layers", std::to_string(args.n), "more");
  check_given("block_made: weight", weight);
  if (weight.ndim != 2) refuse("block_made: weight", "[out, in]", text_of(weight.size, weight.ndim));
  const int64_t n_out = weight.size[0], n_in = D * before;  // n_in: that of the layer before, or features
  check_number("block_made: rows of weight", n_out, 1, INT32_MAX);
  if (n_out % D) refuse("block_made: rows of weight", "a multiple of " + std::to_string(D), std::to_string(n_out));
  check_number("block_made: the number of weights", n_out * n_in, 1, kMostWeights);
  if (layers_.empty()) {
    if (weight.type != DType::f64) check_type("block_made: weight", weight, DType::f32);
    args.type = weight.type;
  }
  check_rows("block_made: weight", weight, args.type, n_out, n_in);
  check_contiguous("block_made: bias", v.bias, args.type, {n_out});
  if (v.log_norm.given()) check_contiguous("block_made: log_norm", v.log_norm, args.type, {n_out});
  if (v.grad_weight.given()) check_contiguous("block_made: grad_weight", v.grad_weight, args.type, {n_out, n_in});
  if (v.grad_bias.given()) check_contiguous("block_made: grad_bias", v.grad_bias, args.type, {n_out});
  if (v.grad_log_norm.given()) {
    check_contiguous("block_made: grad_log_norm", v.grad_log_norm, args.type, {n_out});
    check_given("block_made: log_norm, whose gradient is wanted,", v.log_norm);
    check_given("block_made: grad_weight, beside grad_log_norm,", v.grad_weight);
  }
  layers_.push_back({weight.data, weight.stride[0], v.bias.data, v.log_norm.data, before, n_out / D, v.grad_weight.data,
                     v.grad_bias.data, v.grad_log_norm.data});
}

void BlockLayers::close(const View& gate, const View& grad_gate) {
  if (int(layers_.size()) != args.n)
    refuse("block_made: layers", std::to_string(args.n), std::to_string(layers_.size()));
  if (layers_.back().after != 1)
    refuse("block_made: rows of the last weight", std::to_string(args.features),
           std::to_string(args.features * layers_.back().after));
  if (gate.given() != (args.residual == BlockResidual::gated))
    refuse("block_made: gate", "given where the residual is gated, and only there", gate.given() ? "a tensor" : "None");
  if (gate.given()) check_dense("block_made: gate", gate, args.type, 1);
  if (grad_gate.given()) check_dense("block_made: grad_gate", grad_gate, args.type, 1);
  args.gate = gate.data, args.grad_gate = grad_gate.data;
  checked_product("block_made: rows times multiply-adds of a row", {args.rows, args.work(), kBytesOfWork});
}

static BlockArgs of_input(const BlockLayers& net, const View& x) {
  BlockArgs a = net.args;
  check_rows("block_made: x", x, a.type, a.rows, a.features);
  a.x = x.data, a.x_stride = x.stride[0];
  return a;
}

BlockArgs block_made_fwd_args(const BlockLayers& net, const View& x, const View& y, const View& ladj) {
  BlockArgs a = of_input(net, x);
  check_dense("block_made: y", y, a.type, a.rows * a.features);
  check_dense("block_made: ladj", ladj, a.type, a.rows);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

BlockArgs block_made_bwd_args(const BlockLayers& net, const View& x, const View& y, const View& grad_y,
                              const View& grad_ladj, const View& grad_x) {
  BlockArgs a = of_input(net, x);
  const int64_t of_x = a.rows * a.features;
  if (a.inverse) check_dense("block_made: y", y, a.type, of_x);
  if (grad_y.given()) check_dense("block_made: grad_y", grad_y, a.type, of_x);
  if (grad_ladj.given()) check_dense("block_made: grad_ladj", grad_ladj, a.type, a.rows);
  if (grad_x.given()) check_dense("block_made: grad_x", grad_x, a.type, of_x);
  a.y = a.inverse ? y.data : nullptr;
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data, a.grad_x = grad_x.data;
  return a;
}

}  // namespace fk
