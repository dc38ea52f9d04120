// From what Python lists to a call of a flow layer, checked for what would corrupt memory.
#include "flow_layer.h"

namespace fk {

namespace {

void check_columns(const char* name, const std::vector<int32_t>& columns, int64_t features) {
  std::vector<bool> seen(size_t(features), false);
  bool fits = !columns.empty();
  for (size_t i = 0; fits && i < columns.size(); ++i) {
    fits = 0 <= columns[i] && columns[i] < features && !seen[size_t(columns[i])];
    if (fits) seen[size_t(columns[i])] = true;
  }
  if (!fits) refuse(name, "distinct features below " + std::to_string(features) + ", at least one", "others");
}

FlowLayerArgs layer_args(const NetLayers& net, const UnivariateMap& map, const Columns& columns, const View& x) {
  const int64_t n_in = net.spec.layers[0].n_in, n_out = net.spec.n_out();
  const int64_t seen = int64_t(columns.inputs.size()), mapped = int64_t(columns.outputs.size());
  if (n_in != seen) refuse("flow_layer: inputs of the net", std::to_string(seen), std::to_string(n_in));
  if (n_out != mapped * map.params())
    refuse("flow_layer: outputs of the net", std::to_string(mapped * map.params()), std::to_string(n_out));
  map.check(net.type);
  checked_product("flow_layer: elements of x", {net.rows, columns.features});
  check_rows("flow_layer: x", x, net.type, net.rows, columns.features);
  FlowLayerArgs a = {};
  a.net = net.spec;
  a.map = map;
  a.type = net.type;
  a.rows = net.rows, a.features = columns.features;
  a.x = x.data, a.x_stride = x.stride[0];
  a.in_columns = columns.inputs.data(), a.columns = columns.outputs.data();
  a.n_columns = mapped;
  return a;
}

}  // namespace

Columns::Columns(int64_t n, std::vector<int32_t> in, std::vector<int32_t> out)
    : features(n), inputs(std::move(in)), outputs(std::move(out)) {
  check_number("flow_layer: features", features, 1, INT32_MAX);
  check_columns("flow_layer: inputs", inputs, features);
  check_columns("flow_layer: outputs", outputs, features);
}

FlowLayerArgs flow_layer_fwd_args(const NetLayers& net, const UnivariateMap& map, const Columns& columns, const View& x,
                                  const View& y, const View& ladj) {
  FlowLayerArgs a = layer_args(net, map, columns, x);
  check_dense("flow_layer: y", y, net.type, a.rows * a.features);
  check_dense("flow_layer: ladj", ladj, net.type, a.rows);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

FlowLayerArgs flow_layer_bwd_args(const NetLayers& net, const UnivariateMap& map, const Columns& columns, const View& x,
                                  const View& grad_y, const View& grad_ladj, const View& grad_x) {
  FlowLayerArgs a = layer_args(net, map, columns, x);
  if (grad_y.given()) check_dense("flow_layer: grad_y", grad_y, net.type, a.rows * a.features);
  if (grad_ladj.given()) check_dense("flow_layer: grad_ladj", grad_ladj, net.type, a.rows);
  if (grad_x.given()) check_dense("flow_layer: grad_x", grad_x, net.type, a.rows * a.features);
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data, a.grad_x = grad_x.data;
  return a;
}

}  // namespace fk
