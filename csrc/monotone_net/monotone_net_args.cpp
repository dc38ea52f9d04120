// From what torch says of the tensors to a call of a monotone network, checked for what would corrupt memory.
#include "monotone_net.h"

namespace fk {

MonotoneSpec monotone_spec(bool positive, int activation, const std::vector<double>& nodes,
                           const std::vector<double>& weights, double log_bound, double bound, bool shift,
                           bool inverse) {
  MonotoneSpec s = {};
  check_number("MonotoneSpec: activation", activation, 0, int(Activation::tanh));
  check_number("MonotoneSpec: nodes", int64_t(nodes.size()), 1, MonotoneSpec::kMaxNodes);
  check_number("MonotoneSpec: weights", int64_t(weights.size()), int64_t(nodes.size()), int64_t(nodes.size()));
  s.positive = positive, s.activation = Activation(activation);
  s.nodes = int(nodes.size());
  for (int i = 0; i < s.nodes; ++i) s.node[i] = nodes[size_t(i)], s.weight[i] = weights[size_t(i)];
  s.log_bound = log_bound, s.bound = bound, s.shift = shift, s.inverse = inverse;
  return s;
}

namespace {

MonotoneArgs inputs(const MonotoneSpec& spec, const View& x, const View& signal, const std::vector<View>& layers) {
  MonotoneArgs a = {};
  a.spec = spec;
  check_given("monotone: x", x);
  if (x.type != DType::f32 && x.type != DType::f64) refuse("monotone: x", "float32 or float64", name_of(x.type));
  if (x.ndim != 2) refuse("monotone: x", "[rows, D]", text_of(x.size, x.ndim));
  a.type = x.type, a.rows = x.size[0], a.features = x.size[1];
  check_contiguous("monotone: x", x, a.type, {a.rows, a.features});
  check_given("monotone: signal", signal);
  if (signal.ndim != 3) refuse("monotone: signal", "[rows, D, S]", text_of(signal.size, signal.ndim));
  a.numbers = signal.size[2];
  check_contiguous("monotone: signal", signal, a.type, {a.rows, a.features, a.numbers});
  check_number("monotone: signal", a.numbers, int64_t(spec.shift), int64_t(1) << 31);
  check_number("monotone: layers", int64_t(layers.size()), 4, 2 * kMaxMonotoneLayers);
  a.n = int(layers.size() / 2);
  if (layers.size() % 2 != 0) refuse("monotone: layers", "weight and bias of each", std::to_string(layers.size()));
  check_given("monotone: weight", layers[0]);
  if (layers[0].ndim != 3) refuse("monotone: weight", "[sets, out, in]", text_of(layers[0].size, layers[0].ndim));
  a.sets = layers[0].size[0];
  if (a.sets != 1 && a.sets != a.features)
    refuse("monotone: weight", "of 1 set or " + std::to_string(a.features), std::to_string(a.sets));
  int64_t before = 1 + a.seen();
  for (int i = 0; i < a.n; ++i) {
    const View &weight = layers[size_t(2 * i)], &bias = layers[size_t(2 * i + 1)];
    check_given("monotone: weight", weight);
    if (weight.ndim != 3) refuse("monotone: weight", "[sets, out, in]", text_of(weight.size, weight.ndim));
    const int64_t out = i == a.n - 1 ? 1 : weight.size[1];
    check_number("monotone: units", out, 1, int64_t(1) << 20);
    check_contiguous("monotone: weight", weight, a.type, {a.sets, out, before});
    check_contiguous("monotone: bias", bias, a.type, {a.sets, out});
    a.layers[i] = {weight.data, bias.data, before, out, nullptr, nullptr};
    before = out;
  }
  checked_product("monotone: x", {a.rows, a.features, a.numbers + 1, int64_t(sizeof(double))});
  a.x = x.data, a.signal = signal.data;
  return a;
}

const void* wanted(const char* name, const View& v, DType type, std::initializer_list<int64_t> sizes) {
  if (!v.given()) return nullptr;
  check_contiguous(name, v, type, sizes);
  return v.data;
}

}  // namespace

MonotoneArgs monotone_fwd_args(const MonotoneSpec& spec, const View& x, const View& signal,
                               const std::vector<View>& layers, const View& y, const View& ladj) {
  MonotoneArgs a = inputs(spec, x, signal, layers);
  check_contiguous("monotone: y", y, a.type, {a.rows, a.features});
  check_contiguous("monotone: ladj", ladj, a.type, {a.rows});
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

MonotoneArgs monotone_bwd_args(const MonotoneSpec& spec, const View& x, const View& signal,
                               const std::vector<View>& layers, const View& root, const View& grad_y,
                               const View& grad_ladj, const View& grad_x, const View& grad_signal,
                               const std::vector<View>& grads) {
  MonotoneArgs a = inputs(spec, x, signal, layers);
  const int64_t N = a.rows, D = a.features;
  if (spec.inverse) check_contiguous("monotone: root", root, a.type, {N, D});
  a.root = spec.inverse ? root.data : nullptr;
  a.grad_y = wanted("monotone: grad_y", grad_y, a.type, {N, D});
  a.grad_ladj = wanted("monotone: grad_ladj", grad_ladj, a.type, {N});
  a.grad_x = const_cast<void*>(wanted("monotone: grad_x", grad_x, a.type, {N, D}));
  a.grad_signal = const_cast<void*>(wanted("monotone: grad_signal", grad_signal, a.type, {N, D, a.numbers}));
  check_number("monotone: grads", int64_t(grads.size()), 2 * a.n, 2 * a.n);
  for (int i = 0; i < a.n; ++i) {
    MonotoneLayer& l = a.layers[i];
    const size_t at = size_t(2 * i);
    l.grad_weight = const_cast<void*>(wanted("monotone: grad_weight", grads[at], a.type, {a.sets, l.n_out, l.n_in}));
    l.grad_bias = const_cast<void*>(wanted("monotone: grad_bias", grads[at + 1], a.type, {a.sets, l.n_out}));
  }
  return a;
}

}  // namespace fk
