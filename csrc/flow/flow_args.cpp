// From what Python lists to a call of a flow, checked for what would corrupt memory.
#include "flow.h"

#include "../common/view_like.h"

namespace fk {

namespace {

constexpr int64_t kMostLayers = 4096;
constexpr int kEnters = -1, kLeaves = -2;  // in place of a layer of a network: what enters a step, and what leaves it

bool slope_needs_input(Activation a) { return a == Activation::gelu || a == Activation::silu; }

// Whether what enters layer i of a network is kept for backward. Of a residual one `all` keeps what every layer needs,
// but not where a gate needs what stood before it, or the gradient of a scale the stream.
bool keeps(const NetSpec& net, int i, bool all) {
  if (i == 0 || slope_needs_input(net.activation)) return false;
  if (!net.residual) return true;
  bool gated = false;
  for (int j = 0; j < net.n; ++j) gated |= net.layers[j].gate != nullptr;
  return (all && !gated && !net.scaled()) || (i % 2 == 0 && i < net.n - 1);
}

}  // namespace

FlowPlan::FlowPlan(int64_t n) : features(n) {
  check_number("flow: features", features, 1, INT32_MAX);
  place_.resize(size_t(features));
  for (size_t i = 0; i < place_.size(); ++i) place_[i] = int32_t(i);
}

FlowPlan::Step& FlowPlan::add(Step step) {
  check_number("flow: the number of layers", int64_t(steps_.size()) + 1, 1, kMostLayers);
  steps_.push_back(std::move(step));
  return steps_.back();
}

// Where these features stand now.
std::vector<int32_t> FlowPlan::placed(const std::vector<int32_t>& list) const {
  std::vector<int32_t> found(list.size());
  for (size_t i = 0; i < list.size(); ++i) found[i] = place_[size_t(list[i])];
  return found;
}

void FlowPlan::add_layer(const UnivariateMap& map, const Columns& columns) {
  if (columns.features != features)
    refuse("flow: features of a layer", std::to_string(features), std::to_string(columns.features));
  Step& step = add({StepKind::layer, map});
  step.inputs = placed(columns.inputs), step.outputs = placed(columns.outputs);
}

void FlowPlan::add_sweep(const UnivariateMap& map) {
  Step& step = add({StepKind::sweep, map});
  step.inputs = step.outputs = place_;
}

void FlowPlan::add_order(const std::vector<int32_t>& order) {
  if (order.empty()) refuse("flow: an order", "of all features", "an empty one");
  check_order("flow: an order", order, features);
  place_ = placed(order);
  moved_ = false;
  for (size_t i = 0; i < order.size(); ++i) moved_ |= place_[i] != int32_t(i);
}

void FlowPlan::add_lu(bool inverse, const std::vector<int32_t>& permutation, bool has_bias) {
  checked_product("flow: features of an LU layer", {features, features, 64});
  if (!permutation.empty()) check_order("flow: a permutation", permutation, features);
  Step& step = add({StepKind::lu});
  step.inverse = inverse, step.has_shift = has_bias;
  step.inputs = place_;
  step.permutation.assign(permutation.begin(), permutation.end());
  // The triangles leave each feature in its place: the permutation, like an order, is who is said to stand there.
  std::vector<int32_t> order = permutation;
  for (size_t i = 0; inverse && i < permutation.size(); ++i) order[size_t(permutation[i])] = int32_t(i);
  if (!order.empty()) add_order(order);
  step.outputs = place_;
}

void FlowPlan::add_scale(bool inverse, bool is_log, bool has_shift) {
  Step& step = add({StepKind::scale});
  step.inverse = inverse, step.is_log = is_log, step.has_shift = has_shift;
  step.inputs = step.outputs = place_;
}

void FlowPlan::add_elementwise(const UnivariateMap& map, const std::vector<int32_t>& outputs) {
  const Columns columns(features, outputs, outputs);
  add({StepKind::elementwise, map}).outputs = placed(columns.outputs);
}

void FlowPlan::add_normal() { add({StepKind::normal}); }

int64_t FlowStep::multiply_adds(int64_t features) const {
  return has_net(kind) ? net.work() : kind == StepKind::lu ? features * (features + 16) : features;
}

int64_t FlowStep::widths(int64_t features) const {
  return has_net(kind) ? net.widths() : kind == StepKind::lu ? 4 * features : 0;
}

FlowCall::FlowCall(std::shared_ptr<const FlowPlan> plan, int64_t rows) : plan_(std::move(plan)), rows_(rows) {
  check_number("flow: the number of layers", int64_t(plan_->steps().size()), 1, kMostLayers);
  check_number("flow: rows", rows_, 1, INT64_MAX);
  checked_product("flow: numbers that enter layers", {rows_, plan_->features, int64_t(plan_->steps().size()), 16});
  steps_.reserve(plan_->steps().size());  // where gradients go is known by address
}

// The step whose tensors come next: one of this kind, with tensors of this type.
const FlowPlan::Step& FlowCall::next(StepKind kind, DType type) const {
  const size_t i = steps_.size();
  if (i == plan_->steps().size()) refuse("flow: networks", "one per layer, " + std::to_string(i), "more");
  const auto& step = plan_->steps()[i];
  if (step.kind != kind) refuse("flow: layer " + std::to_string(i), "of its own kind", "tensors of another");
  const std::string name = "flow: layer " + std::to_string(i) + ": weights";
  if (type != DType::f32 && type != DType::f64) refuse(name, "float32 or float64", name_of(type));
  if (i > 0 && type != type_) refuse(name, name_of(type_), name_of(type));
  return step;
}

void FlowCall::add(std::unique_ptr<NetLayers> net) {
  const size_t i = steps_.size();
  const bool sweeps = i < plan_->steps().size() && plan_->steps()[i].kind == StepKind::sweep;
  const auto& step = next(sweeps ? StepKind::sweep : StepKind::layer, net->type);
  const std::string name = "flow: layer " + std::to_string(i) + ": ";
  const int64_t seen = int64_t(step.inputs.size()), mapped = int64_t(step.outputs.size());
  const int64_t n_in = net->spec.layers[0].n_in, n_out = net->spec.n_out();
  if (net->rows != rows_) refuse(name + "rows", std::to_string(rows_), std::to_string(net->rows));
  if (n_in != seen) refuse(name + "inputs of the net", std::to_string(seen), std::to_string(n_in));
  if (n_out != mapped * step.map.params())
    refuse(name + "outputs of the net", std::to_string(mapped * step.map.params()), std::to_string(n_out));
  if (sweeps && net->spec.scaled()) refuse(name + "scales of the net of a sweep", "None", "a tensor");
  type_ = net->type;
  step.map.check(type_);
  FlowStep found = {step.kind};
  found.net = net->spec, found.map = &step.map;
  found.in = step.inputs.data(), found.out = step.outputs.data(), found.n_out = mapped;
  steps_.push_back(found);
  for (int i = 0; i < net->spec.n; ++i) {
    MaskedLayer& l = net->at(i);
    grads_.push_back({&l.grad_weight, l.n_out * l.n_in});
    if (l.bias) grads_.push_back({&l.grad_bias, l.n_out});
  }
  for (int i = 0; i < net->spec.n; ++i)
    if (net->at(i).add) grads_.push_back({&net->at(i).grad_add, rows_ * net->at(i).n_out});
  for (int i = 0; i < net->spec.n; ++i)
    if (net->at(i).gate) grads_.push_back({&net->at(i).grad_gate, rows_ * net->at(i).n_out});
  for (int i = 0; i < net->spec.n; ++i)
    if (InputScale* const of = net->at(i).scaled) {
      grads_.push_back({&of->grad_scale, net->at(i).n_in});
      grads_.push_back({&of->grad_shift, net->at(i).n_in});
    }
  nets_.push_back(std::move(net));
}

// A tensor of the last step, and where its gradient goes.
void FlowCall::take(const char* name, const View& v, std::initializer_list<int64_t> sizes, const void** at,
                    void** grad) {
  const std::string full = "flow: layer " + std::to_string(steps_.size() - 1) + ": " + name;
  check_contiguous(full.c_str(), v, type_, sizes);
  *at = v.data;
  grads_.push_back({grad, v.count()});
}

void FlowCall::add_lu(const View& lower, const View& upper, const View& log_s, const View& sign_s, const View& bias) {
  check_given("flow: lower", lower);
  const auto& step = next(StepKind::lu, lower.type);
  const int64_t C = plan_->features;
  type_ = lower.type;
  steps_.push_back({StepKind::lu});
  FlowStep& found = steps_.back();
  found.in = step.inputs.data(), found.out = step.outputs.data(), found.n_out = C;
  LuArgs& a = found.lu;
  a.type = type_, a.inverse = step.inverse;
  a.images = 1, a.pixels = rows_, a.channels = C;
  a.ladj_count = rows_, a.ladj_pixels = 1;
  a.permutation = step.permutation.empty() ? nullptr : step.permutation.data();
  take("lower", lower, {C, C}, &a.lower, &a.grad_lower);
  take("upper", upper, {C, C}, &a.upper, &a.grad_upper);
  take("log_s", log_s, {C}, &a.log_s, &a.grad_log_s);
  take("sign_s", sign_s, {C}, &a.sign_s, &a.grad_sign_s);
  if (step.has_shift) take("bias", bias, {C}, &a.bias, &a.grad_bias);
}

void FlowCall::add_scale(const View& scale, const View& shift) {
  check_given("flow: scale", scale);
  const auto& step = next(StepKind::scale, scale.type);
  type_ = scale.type;
  steps_.push_back({StepKind::scale});
  FlowStep& found = steps_.back();
  found.in = step.inputs.data(), found.out = step.outputs.data(), found.n_out = plan_->features;
  found.inverse = step.inverse, found.is_log = step.is_log;
  take("scale", scale, {plan_->features}, &found.scale, &found.grad_scale);
  if (step.has_shift) take("shift", shift, {plan_->features}, &found.shift, &found.grad_shift);
}

void FlowCall::add_elementwise(const View& params) {
  check_given("flow: params", params);
  const auto& step = next(StepKind::elementwise, params.type);
  const int64_t mapped = int64_t(step.outputs.size());
  type_ = params.type;
  step.map.check(type_);
  steps_.push_back({StepKind::elementwise});
  FlowStep& found = steps_.back();
  found.map = &step.map;
  found.in = found.out = step.outputs.data(), found.n_out = mapped;
  take("params", params, {mapped, step.map.params()}, &found.scale, &found.grad_scale);
}

void FlowCall::add_normal() {
  next(StepKind::normal, type_);
  steps_.push_back({StepKind::normal});
}

void FlowCall::close() {
  const size_t n = plan_->steps().size();
  if (steps_.size() != n)
    refuse("flow: networks", "one per layer, " + std::to_string(n), std::to_string(steps_.size()));
  int64_t work = 0;  // each is below 2**63 / 64, as NetLayers::close and add_lu have checked
  for (const auto& step : steps_)
    if (__builtin_add_overflow(work, step.multiply_adds(plan_->features), &work)) work = INT64_MAX;
  checked_product("flow: rows times multiply-adds of a row", {rows_, work, 66});
}

// f(step, layer, network, number of numbers) of all that is kept, layer kEnters being what enters a step; returns their
// sum. A sweep's hidden units are not: their sums have another order than those that backward takes.
template <class F>
int64_t FlowCall::each_kept(bool all, const F& f) const {
  int64_t sum = 0;
  const auto one = [&](size_t i, int layer, size_t net, int64_t width) {
    const int64_t n = checked_product("flow: numbers that are kept", {rows_, width});
    f(i, layer, net, n);
    if (__builtin_add_overflow(sum, n, &sum)) refuse("flow: numbers that are kept", "below 2**63", "more");
  };
  for (size_t i = 0, net = 0; i < steps_.size(); ++i) {
    const StepKind kind = steps_[i].kind;
    if (i > 0) one(i, kEnters, net, plan_->features);
    if (kind == StepKind::sweep && i + 1 == steps_.size()) one(i, kLeaves, net, plan_->features);
    const NetSpec& spec = steps_[i].net;
    for (int layer = 0; kind == StepKind::layer && layer < spec.n; ++layer)
      if (keeps(spec, layer, all)) one(i, layer, net, spec.layers[layer].n_in);
    net += has_net(kind);
  }
  return sum;
}

int64_t FlowCall::kept_size(bool all) const {
  return each_kept(all, [](size_t, int, size_t, int64_t) {});
}

void FlowCall::take_grad(int64_t i, const View& grad) {
  check_number("flow: the place of a gradient", i, 0, n_tensors() - 1);
  const Grad& g = grads_[size_t(i)];
  if (grad.given()) check_dense("flow: a gradient", grad, type_, g.size);
  *g.to = grad.data;
}

void FlowCall::take_grads(const View& flat, const std::vector<int64_t>& places) {
  check_dense("flow: the flat gradient", flat, type_, flat.count());
  if (int64_t(places.size()) != n_tensors())
    refuse("flow: places", std::to_string(n_tensors()) + " numbers", std::to_string(places.size()));
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == -1) continue;
    check_number("flow: the place of a gradient", places[i], 0, flat.count() - grads_[i].size);
    *grads_[i].to = static_cast<char*>(flat.data) + places[i] * bytes_of_type(type_);
  }
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
  for (auto& step : steps_) step.x = step.after = nullptr;
  for (const auto& net : nets_)
    for (int i = 0; i < net->spec.n; ++i) net->at(i).kept = nullptr;
  if (!kept.given()) return;
  const bool all = kept.count() != kept_size(false);
  check_dense("flow: kept", kept, type_, kept_size(all));
  char* to = static_cast<char*>(kept.data);
  each_kept(all, [&](size_t i, int layer, size_t net, int64_t n) {
    (layer == kEnters ? steps_[i].x : layer == kLeaves ? steps_[i].after : nets_[net]->at(layer).kept) = to;
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
  take_kept(kept);
  a.recomputes = !kept.given();
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data, a.grad_x = grad_x.data;
  for (auto& step : steps_) step.lu.grad_ladj = grad_ladj.data;
  return a;
}

}  // namespace fk
