// The gate in front of kernels that run a network: every relation that they rely on, between the tensors themselves.
#include "net_args.h"

namespace fk {

namespace {

constexpr int64_t kMostUnits = INT32_MAX;           // orders are int32
constexpr int64_t kMostWeights = int64_t(1) << 48;  // of a layer; times the bytes of a number still a size
constexpr int64_t kWorkOfMaps = 2 * (1 + 32);       // a layer's maps and its way back, by net.work(); see kParamWork

void check_optional(const char* name, const View& v, DType type, std::initializer_list<int64_t> sizes) {
  if (v.given()) check_contiguous(name, v, type, sizes);
}

}  // namespace

NetLayers::NetLayers(int64_t layers, int64_t n_rows, bool residual, int activation, int last) : rows(n_rows) {
  check_number("net: the number of layers", layers, 1, kMaxLayers);
  if (residual && layers % 2)
    refuse("net: the number of layers", "even where there are blocks", std::to_string(layers));
  check_number("net: rows", rows, 1, INT64_MAX);  // tiles divide by their number
  check_number("net: activation", activation, 0, int(Activation::tanh));
  check_number("net: last", last, 0, int(Activation::tanh));
  layers_.reserve(size_t(layers));
  scales_.reserve(size_t(layers));
  masks_.reserve(size_t(layers));
  spec = {layers_.data(), int(layers), residual, Activation(activation), Activation(last)};
}

void NetLayers::check_layer(const LayerViews& v, const LayerMask* mask) const {
  const int i = int(layers_.size());
  check_given("weight", v.weight);
  if (v.weight.ndim != 2) refuse("weight", "[n_out, n_in]", text_of(v.weight.size, v.weight.ndim));
  const int64_t n_out = v.weight.size[0], n_in = v.weight.size[1];
  check_number("n_out", n_out, 1, kMostUnits);
  check_number("n_in", n_in, 1, kMostUnits);
  check_number("the number of weights", n_out * n_in, 1, kMostWeights);
  if (i == 0 && v.weight.type != DType::f64) check_type("weight", v.weight, DType::f32);
  const DType of_all = i == 0 ? v.weight.type : type;
  check_rows("weight", v.weight, of_all, n_out, n_in);
  if (i > 0 && n_in != layers_.back().n_out)
    refuse("n_in", "what the layer before returns, " + std::to_string(layers_.back().n_out), std::to_string(n_in));
  if (spec.closes_block(i) && n_out != layers_[0].n_out)
    refuse("n_out", "the width of the stream, " + std::to_string(layers_[0].n_out), std::to_string(n_out));
  check_optional("bias", v.bias, of_all, {n_out});
  if (mask && (mask->n_in != n_in || mask->n_out != n_out)) {
    const int64_t given[] = {mask->n_out, mask->n_in};
    refuse("mask", "that of the weight, " + text_of(v.weight.size, 2), text_of(given, 2));
  }
  if (v.add.given()) check_rows("add", v.add, of_all, rows, n_out);
  if (v.gate.given()) {
    if (!spec.closes_block(i)) refuse("gate", "None where the layer closes no residual block", "a tensor");
    check_rows("gate", v.gate, of_all, rows, n_out);
  }
  if (v.scale.given() || v.shift.given()) {
    if (!spec.opens_block(i)) refuse("scale", "None where the layer opens no residual block", "a tensor");
    if (mask) refuse("scale", "None where the layer is masked", "a tensor");
    check_contiguous("scale", v.scale, of_all, {n_in});
    check_contiguous("shift", v.shift, of_all, {n_in});
  }
  check_optional("kept", v.kept, of_all, {rows, n_in});
  check_optional("grad_weight", v.grad_weight, of_all, {n_out, n_in});
  check_optional("grad_bias", v.grad_bias, of_all, {n_out});
  check_optional("grad_add", v.grad_add, of_all, {rows, n_out});
  check_optional("grad_gate", v.grad_gate, of_all, {rows, n_out});
  check_optional("grad_scale", v.grad_scale, of_all, {n_in});
  check_optional("grad_shift", v.grad_shift, of_all, {n_in});
}

void NetLayers::add(const LayerViews& v, std::shared_ptr<const LayerMask> mask) {
  try {
    check_layer(v, mask.get());
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument("net: layer " + std::to_string(layers_.size()) + ": " + error.what());
  }
  type = v.weight.type;
  MaskedLayer l = {};
  l.weight = v.weight.data, l.weight_stride = v.weight.stride[0];
  l.bias = v.bias.data;
  l.n_out = v.weight.size[0], l.n_in = v.weight.size[1];
  if (mask) l.in_order = mask->in_order, l.out_order = mask->out_order, l.limit = mask->limit;
  l.add = v.add.data, l.add_stride = v.add.given() ? v.add.stride[0] : 0;
  l.gate = v.gate.data, l.gate_stride = v.gate.given() ? v.gate.stride[0] : 0;
  if (v.scale.given()) {
    scales_.push_back({v.scale.data, v.shift.data, v.grad_scale.data, v.grad_shift.data});
    l.scaled = &scales_.back();
  }
  l.kept = v.kept.data;
  l.grad_weight = v.grad_weight.data, l.grad_bias = v.grad_bias.data;
  l.grad_add = v.grad_add.data, l.grad_gate = v.grad_gate.data;
  layers_.push_back(l);
  masks_.push_back(std::move(mask));
}

void NetLayers::close() {
  if (int(layers_.size()) != spec.n) refuse("net: layers", std::to_string(spec.n), std::to_string(layers_.size()));
  checked_product("net: rows times multiply-adds of a row", {rows, spec.work(), kWorkOfMaps});
}

void check_threads(int threads) { check_number("threads", threads, 1, INT32_MAX); }

NetArgs net_fwd_args(const NetLayers& net, const View& x, const View& y) {
  check_rows("net: x", x, net.type, net.rows, net.spec.layers[0].n_in);
  check_dense("net: y", y, net.type, net.rows * net.spec.n_out());
  return {net.spec, net.type, net.rows, x.data, x.stride[0], y.data, nullptr, nullptr};
}

NetArgs net_bwd_args(const NetLayers& net, const View& x, const View& y, const View& grad_y, const View& grad_x) {
  const int64_t of_y = net.rows * net.spec.n_out();
  check_rows("net: x", x, net.type, net.rows, net.spec.layers[0].n_in);
  if (y.given()) check_dense("net: y", y, net.type, of_y);
  check_dense("net: grad_y", grad_y, net.type, of_y);
  if (grad_x.given()) check_dense("net: grad_x", grad_x, net.type, net.rows * net.spec.layers[0].n_in);
  return {net.spec, net.type, net.rows, x.data, x.stride[0], y.data, grad_y.data, grad_x.data};
}

}  // namespace fk
