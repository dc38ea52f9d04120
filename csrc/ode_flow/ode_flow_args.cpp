// From what torch says of the tensors to a call of a continuous map, checked for what would corrupt memory.
#include "ode_flow.h"

namespace fk {

namespace {

constexpr int64_t kMostSteps = 1000000;
constexpr int64_t kBytesOfWork = 1 << 12;  // what a tile holds of a number of a layer, of any of its kinds

std::string named(int k, const char* what) { return "ode_flow: layers[" + std::to_string(k) + "] " + what; }

OdeArgs of_input(const OdeSettings& s, const View& x, const OdeViews& tensors, int n_tensors) {
  check_number("ode_flow: solver", s.solver, 0, int(OdeSolver::dopri5));
  check_number("ode_flow: activation", s.activation, 0, int(Smooth::softplus));
  check_number("ode_flow: trace", s.trace, 0, int(OdeTrace::noise));
  check_number("ode_flow: time", s.time, 0, int(OdeTime::none));
  check_number("ode_flow: steps", s.steps, 1, kMostSteps);
  check_number("ode_flow: frequencies", s.frequencies, 0, INT32_MAX / 2);
  check_given("ode_flow: x", x);
  if (x.ndim != 2) refuse("ode_flow: x", "[rows, features]", text_of(x.size, x.ndim));
  if (x.type != DType::f64) check_type("ode_flow: x", x, DType::f32);
  OdeArgs a = {};
  a.type = x.type, a.solver = OdeSolver(s.solver), a.trace = OdeTrace(s.trace), a.time = OdeTime(s.time);
  a.activation = Smooth(s.activation), a.steps = s.steps, a.frequencies = s.frequencies;
  a.t0 = s.t0, a.t1 = s.t1, a.rtol = s.rtol, a.atol = s.atol;
  a.rows = x.size[0], a.features = x.size[1];
  check_number("ode_flow: rows", a.rows, 1, INT64_MAX);
  check_number("ode_flow: features", a.features, 1, INT32_MAX);
  check_rows("ode_flow: x", x, a.type, a.rows, a.features);
  a.x = x.data, a.x_stride = x.stride[0];
  const int extra = a.trace == OdeTrace::product ? 1 : 2, of_layers = n_tensors - extra;
  check_number("ode_flow: tensors of layers", of_layers, 2, 2 * kMostOdeLayers);
  if (of_layers % 2) refuse("ode_flow: tensors of layers", "two of each", std::to_string(of_layers));
  a.n = of_layers / 2;
  int64_t n_in = a.features + a.of_time(), widest = n_in;
  for (int k = 0; k < a.n; ++k) {
    const View &w = tensors.of[2 * k], &b = tensors.of[2 * k + 1];
    check_given(named(k, "weight").c_str(), w);
    if (w.ndim != 2) refuse(named(k, "weight"), "[out, in]", text_of(w.size, w.ndim));
    const int64_t n_out = k == a.n - 1 ? a.features : w.size[0];
    check_number(named(k, "outputs").c_str(), n_out, 1, INT32_MAX);
    check_rows(named(k, "weight").c_str(), w, a.type, n_out, n_in);
    a.layers[k] = {w.data, w.stride[0], nullptr, n_in, n_out, nullptr, nullptr};
    if (k == 0 && b.ndim == 2) {
      check_rows(named(k, "bias").c_str(), b, a.type, a.rows, n_out);
      a.base = {b.data, b.stride[0], nullptr};
    } else {
      check_contiguous(named(k, "bias").c_str(), b, a.type, {n_out});
      a.layers[k].bias = b.data;
    }
    checked_product("ode_flow: numbers of a layer", {n_in, n_out, kBytesOfWork});
    n_in = n_out, widest = n_out > widest ? n_out : widest;
  }
  checked_product("ode_flow: rows times numbers of a row", {a.rows, widest, kMostOdeLayers * kBytesOfWork});
  const View& first = tensors.of[of_layers];
  if (a.trace == OdeTrace::product) {
    check_number("ode_flow: hidden layers of a product", a.hidden(), 0, 2);
    const int64_t to = a.hidden() == 2 ? a.layers[1].n_out : 1, from = a.hidden() == 0 ? 1 : a.layers[0].n_out;
    check_rows("ode_flow: the matrix of the trace", first, a.type, to, from);
    a.matrix = {first.data, first.stride[0], nullptr, from, to, nullptr, nullptr};
    return a;
  }
  const View& second = tensors.of[of_layers + 1];
  check_rows("ode_flow: what comes of the noise", first, a.type, a.rows, a.layers[0].n_out);
  check_rows("ode_flow: what the noise takes", second, a.type, a.rows, a.left_width());
  a.right = {first.data, first.stride[0], nullptr}, a.left = {second.data, second.stride[0], nullptr};
  return a;
}

void* room(const std::string& name, const View& v, DType type, int64_t count) {
  if (v.given()) check_dense(name.c_str(), v, type, count);
  return v.data;
}

}  // namespace

OdeArgs ode_flow_fwd_args(const OdeSettings& s, const View& x, const OdeViews& tensors, int n_tensors, const View& y,
                          const View& ladj) {
  OdeArgs a = of_input(s, x, tensors, n_tensors);
  check_dense("ode_flow: y", y, a.type, a.rows * a.features);
  check_dense("ode_flow: ladj", ladj, a.type, a.rows);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

OdeArgs ode_flow_bwd_args(const OdeSettings& s, const View& x, const OdeViews& tensors, int n_tensors,
                          const View& grad_y, const View& grad_ladj, const View& grad_x, const OdeViews& grads) {
  OdeArgs a = of_input(s, x, tensors, n_tensors);
  const int64_t of_x = a.rows * a.features;
  a.grad_y = room("ode_flow: grad_y", grad_y, a.type, of_x);
  a.grad_ladj = room("ode_flow: grad_ladj", grad_ladj, a.type, a.rows);
  a.grad_x = room("ode_flow: grad_x", grad_x, a.type, of_x);
  for (int k = 0; k < a.n; ++k) {
    OdeLayer& l = a.layers[k];
    const bool by_row = k == 0 && a.base.data;
    l.grad_weight = room(named(k, "weight's gradient"), grads.of[2 * k], a.type, l.n_in * l.n_out);
    void* const bias =
        room(named(k, "bias's gradient"), grads.of[2 * k + 1], a.type, by_row ? a.rows * l.n_out : l.n_out);
    (by_row ? a.base.grad : l.grad_bias) = bias;
  }
  const View& first = grads.of[2 * a.n];
  if (a.trace == OdeTrace::product) {
    a.matrix.grad_weight =
        room("ode_flow: the gradient of the trace's matrix", first, a.type, a.matrix.n_in * a.matrix.n_out);
    return a;
  }
  a.right.grad = room("ode_flow: the gradient of noise", first, a.type, a.rows * a.layers[0].n_out);
  a.left.grad = room("ode_flow: the gradient of noise", grads.of[2 * a.n + 1], a.type, a.rows * a.left_width());
  return a;
}

}  // namespace fk
