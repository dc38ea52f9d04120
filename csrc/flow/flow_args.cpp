// From what Python lists to a call of a flow, checked for what would corrupt memory.
#include "flow.h"

namespace fk {

namespace {

constexpr int64_t kMostLayers = 4096;

bool slope_needs_input(Activation a) { return a == Activation::gelu || a == Activation::silu; }

// Whether what enters layer i of a network is kept for backward. Of a residual one `all` keeps what every layer needs,
// but not where a gate needs what stood before it.
bool keeps(const NetSpec& net, int i, bool all) {
  if (i == 0 || slope_needs_input(net.activation)) return false;
  if (!net.residual) return true;
  bool gated = false;
  for (int j = 0; j < net.n; ++j) gated |= net.layers[j].gate != nullptr;
  return (all && !gated) || (i % 2 == 0 && i < net.n - 1);
}

}  // namespace

FlowPlan::FlowPlan(int64_t n) : features(n) {
  check_number("flow: features", features, 1, INT32_MAX);
  place_.resize(size_t(features));
  for (size_t i = 0; i < place_.size(); ++i) place_[i] = int32_t(i);
}

void FlowPlan::add_layer(const UnivariateMap& map, const Columns& columns) {
  check_number("flow: the number of layers", int64_t(layers_.size()) + 1, 1, kMostLayers);
  if (columns.features != features)
    refuse("flow: features of a layer", std::to_string(features), std::to_string(columns.features));
  Layer layer = {map, columns.inputs, columns.outputs};
  for (auto* list : {&layer.inputs, &layer.outputs})
    for (int32_t& i : *list) i = place_[size_t(i)];
  layers_.push_back(std::move(layer));
}

void FlowPlan::add_order(const std::vector<int32_t>& order) {
  if (order.empty()) refuse("flow: an order", "of all features", "an empty one");
  check_order("flow: an order", order, features);
  const std::vector<int32_t> before = place_;
  moved_ = false;
  for (size_t i = 0; i < order.size(); ++i) {
    place_[i] = before[size_t(order[i])];
    moved_ |= place_[i] != int32_t(i);
  }
}

FlowCall::FlowCall(std::shared_ptr<const FlowPlan> plan, int64_t rows) : plan_(std::move(plan)), rows_(rows) {
  check_number("flow: the number of layers", int64_t(plan_->layers().size()), 1, kMostLayers);
  check_number("flow: rows", rows_, 1, INT64_MAX);
  checked_product("flow: numbers that enter layers", {rows_, plan_->features, int64_t(plan_->layers().size()), 16});
}

void FlowCall::add(std::unique_ptr<NetLayers> net) {
  const size_t i = nets_.size();
  if (i == plan_->layers().size()) refuse("flow: networks", "one per layer, " + std::to_string(i), "more");
  const auto& layer = plan_->layers()[i];
  const std::string name = "flow: layer " + std::to_string(i) + ": ";
  const int64_t seen = int64_t(layer.inputs.size()), mapped = int64_t(layer.outputs.size());
  const int64_t n_in = net->spec.layers[0].n_in, n_out = net->spec.n_out();
  if (net->rows != rows_) refuse(name + "rows", std::to_string(rows_), std::to_string(net->rows));
  if (n_in != seen) refuse(name + "inputs of the net", std::to_string(seen), std::to_string(n_in));
  if (n_out != mapped * layer.map.params())
    refuse(name + "outputs of the net", std::to_string(mapped * layer.map.params()), std::to_string(n_out));
  if (i > 0 && net->type != type_) refuse(name + "weights", name_of(type_), name_of(net->type));
  type_ = net->type;
  layer.map.check(type_);
  steps_.push_back({net->spec, &layer.map, layer.inputs.data(), layer.outputs.data(), mapped, nullptr});
  for (int i = 0; i < net->spec.n; ++i) {
    MaskedLayer& l = net->at(i);
    grads_.push_back({&l.grad_weight, l.n_out * l.n_in});
    if (l.bias) grads_.push_back({&l.grad_bias, l.n_out});
  }
  for (int i = 0; i < net->spec.n; ++i)
    if (net->at(i).add) grads_.push_back({&net->at(i).grad_add, rows_ * net->at(i).n_out});
  for (int i = 0; i < net->spec.n; ++i)
    if (net->at(i).gate) grads_.push_back({&net->at(i).grad_gate, rows_ * net->at(i).n_out});
  nets_.push_back(std::move(net));
}

void FlowCall::close() {
  const size_t n = plan_->layers().size();
  if (nets_.size() != n) refuse("flow: networks", "one per layer, " + std::to_string(n), std::to_string(nets_.size()));
  int64_t work = 0;  // each is below 2**63 / 66, as NetLayers::close has checked, with that of its maps
  for (const auto& step : steps_)
    if (__builtin_add_overflow(work, step.net.work(), &work)) work = INT64_MAX;
  checked_product("flow: rows times multiply-adds of a row", {rows_, work, 66});
}

// f(step, layer, number of numbers) of all that is kept, layer -1 being what enters a step; returns their sum.
template <class F>
int64_t FlowCall::each_kept(bool all, const F& f) const {
  int64_t sum = 0;
  const auto one = [&](size_t i, int layer, int64_t width) {
    const int64_t n = checked_product("flow: numbers that are kept", {rows_, width});
    f(i, layer, n);
    if (__builtin_add_overflow(sum, n, &sum)) refuse("flow: numbers that are kept", "below 2**63", "more");
  };
  for (size_t i = 0; i < steps_.size(); ++i) {
    const NetSpec& net = steps_[i].net;
    if (i > 0) one(i, -1, plan_->features);
    for (int layer = 0; layer < net.n; ++layer)
      if (keeps(net, layer, all)) one(i, layer, net.layers[layer].n_in);
  }
  return sum;
}

int64_t FlowCall::kept_size(bool all) const {
  return each_kept(all, [](size_t, int, int64_t) {});
}

void FlowCall::take_grad(int64_t i, const View& grad) {
  check_number("flow: the place of a gradient", i, 0, n_tensors() - 1);
  const Grad& g = grads_[size_t(i)];
  if (grad.given()) check_dense("flow: a gradient", grad, type_, g.size);
  *g.to = grad.data;
}

FlowArgs FlowCall::args(const View& x) {
  check_rows("flow: x", x, type_, rows_, plan_->features);
  FlowArgs a = {};
  a.type = type_;
  a.rows = rows_, a.features = plan_->features;
  a.steps = steps_.data(), a.n = int(steps_.size());
  a.order = plan_->order();
  a.x = x.data, a.x_stride = x.stride[0];
  return a;
}

// Deals the numbers of a flat tensor out to what is kept. Nothing stays of what was dealt out before.
void FlowCall::take_kept(const View& kept) {
  for (auto& step : steps_) step.x = nullptr;
  for (const auto& net : nets_)
    for (int i = 0; i < net->spec.n; ++i) net->at(i).kept = nullptr;
  if (!kept.given()) return;
  const bool all = kept.count() != kept_size(false);
  check_dense("flow: kept", kept, type_, kept_size(all));
  char* to = static_cast<char*>(kept.data);
  each_kept(all, [&](size_t i, int layer, int64_t n) {
    (layer < 0 ? steps_[i].x : nets_[i]->at(layer).kept) = to;
    to += n * (type_ == DType::f64 ? 8 : 4);
  });
}

FlowArgs FlowCall::fwd(const View& x, const View& y, const View& ladj, const View& kept) {
  FlowArgs a = args(x);
  check_dense("flow: y", y, type_, rows_ * a.features);
  check_dense("flow: ladj", ladj, type_, rows_);
  take_kept(kept);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

FlowArgs FlowCall::bwd(const View& x, const View& grad_y, const View& grad_ladj, const View& grad_x, const View& kept) {
  FlowArgs a = args(x);
  if (grad_y.given()) check_dense("flow: grad_y", grad_y, type_, rows_ * a.features);
  if (grad_ladj.given()) check_dense("flow: grad_ladj", grad_ladj, type_, rows_);
  if (grad_x.given()) check_dense("flow: grad_x", grad_x, type_, rows_ * a.features);
  check_given("flow: kept", kept);
  take_kept(kept);
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data, a.grad_x = grad_x.data;
  return a;
}

}  // namespace fk
