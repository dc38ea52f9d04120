// Every entry point of the compiled module, on one screen: tensors in, nothing out. Shapes and
// types are checked in Python (flowkernels/ops/<op>), for users; what kernels rely on is checked
// once more before they run, against the tensors themselves (<op>_args.cpp). The GIL is released
// inside kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include "actnorm/actnorm.h"
#include "affine/affine.h"
#include "autoregressive_inverse/autoregressive_inverse.h"
#include "batch_norm/batch_norm.h"
#include "block_made/block_made.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/view_caster.h"
#include "common/watch.h"
#include "flow/flow.h"
#include "flow_layer/flow_layer.h"
#include "low_rank/low_rank.h"
#include "lu_linear/lu_linear.h"
#include "mixture/mixture.h"
#include "monotone_net/monotone_net.h"
#include "net/net_bindings.h"
#include "ode_flow/ode_flow.h"
#include "polynomial/polynomial.h"
#include "recurrent_inverse/recurrent_inverse.h"
#include "residual_flow/residual_flow.h"
#include "rqs/rqs.h"

namespace py = pybind11;
using namespace fk;

static void* ptr(uintptr_t p) { return reinterpret_cast<void*>(p); }

// Asks for 2 MB pages behind a large fresh tensor before its first touch: a kernel that writes
// 48 MB of gradients otherwise spends most of its time in 12,000 page faults. Advice only.
static void advise_huge(uintptr_t p, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (p + kPage - 1) / kPage * kPage, end = (p + bytes) / kPage * kPage;
  if (begin < end) madvise(ptr(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A flow as Python makes it, once for all its calls.
struct BoundFlow {
  std::shared_ptr<FlowPlan> plan;
  std::vector<NetPlan> nets;  // of the steps that have one

  explicit BoundFlow(int64_t features) : plan(std::make_shared<FlowPlan>(features)) {}
  size_t n_tensors() const {
    size_t n = 0, net = 0;
    for (const auto& step : plan->steps()) switch (step.kind) {
        case StepKind::layer:
        case StepKind::sweep: n += nets[net++].n_tensors(); break;
        case StepKind::lu: n += 4 + size_t(step.has_shift); break;
        case StepKind::scale: n += 1 + size_t(step.has_shift); break;
        case StepKind::elementwise: n += 1; break;
        case StepKind::normal: break;
      }
    return n;
  }
};

// `tensors`: those of every step, one after another.
static std::unique_ptr<FlowCall> flow_call(const BoundFlow& flow, int64_t rows, const py::sequence& tensors) {
  check_length("flow: tensors", tensors, flow.n_tensors());
  auto call = std::make_unique<FlowCall>(flow.plan, rows);
  const py::tuple none;
  size_t at = 0, net = 0;
  View v[5];
  for (const auto& step : flow.plan->steps()) {
    if (has_net(step.kind)) {
      const NetPlan& plan = flow.nets[net++];
      call->add(read_layers(plan, rows, tensors, at, none, none));
      at += plan.n_tensors();
      continue;
    }
    if (step.kind == StepKind::normal) {
      call->add_normal();
      continue;
    }
    const size_t own = step.kind == StepKind::lu ? 4 : 1, n = own + size_t(step.has_shift);
    for (size_t i = 0; i < n; ++i) read(tensors[at++], v[i]);
    if (step.kind == StepKind::lu)
      call->add_lu(v[0], v[1], v[2], v[3], v[4]);
    else if (step.kind == StepKind::scale)
      call->add_scale(v[0], v[1]);
    else
      call->add_elementwise(v[0]);
  }
  call->close();
  return call;
}

// The network of a call whose tensors may be read as they are; none where one has gaps, other signs than are in memory,
// or anything else that `Net` refuses. Asking them here takes half the time that it takes Python.
static std::unique_ptr<NetLayers> dense_net(const NetPlan& plan, int64_t rows, const py::tuple& tensors,
                                            const py::sequence& kept, const py::sequence& grads) {
  PyObject* const is_neg = ModuleNames::get().is_neg;
  for (const py::handle t : tensors)
    if (asked(PyObject_CallMethodNoArgs(t.ptr(), is_neg)).ptr() != Py_False) return nullptr;
  try {
    return net_layers(plan, rows, tensors, kept, grads);
  } catch (const std::invalid_argument&) { return nullptr; }
}

// The layers of a block autoregressive map: weight, bias and, where rows have norms, log_norm of each, then a gate
// where there is one. `grads`: room beside each tensor, or none at all.
static std::unique_ptr<BlockLayers> block_layers(int64_t rows, int64_t features, int activation, int residual,
                                                 bool inverse, double eps, bool has_norms, const py::sequence& tensors,
                                                 const py::sequence& grads) {
  const size_t each = has_norms ? 3 : 2, n = tensors.size() / each;
  const size_t gates = size_t(residual == int(BlockResidual::gated));
  check_length("block_made: tensors", tensors, n * each + gates);
  if (grads.size()) check_length("block_made: grads", grads, tensors.size());
  auto net = std::make_unique<BlockLayers>(rows, features, int64_t(n), activation, residual, inverse, eps);
  BlockViews v;
  const auto take = [&](size_t at, View& of, View& grad) {
    read(tensors[at], of);
    if (grads.size()) read(grads[at], grad);
  };
  for (size_t i = 0; i < n; ++i) {
    take(i * each, v.weight, v.grad_weight), take(i * each + 1, v.bias, v.grad_bias);
    if (has_norms) take(i * each + 2, v.log_norm, v.grad_log_norm);
    net->add(v);
  }
  View gate, grad_gate;
  if (gates) take(n * each, gate, grad_gate);
  net->close(gate, grad_gate);
  return net;
}

// The layers of a residual block: weight and bias of each, then betas where there are any. `grads`: room beside each
// tensor, or none at all. `series`: of an estimate weights, noise and room for sums of powers, or none at all.
static std::unique_ptr<ResidualLayers> residual_layers(int64_t rows, int64_t features, int64_t activation,
                                                       bool preactivated, bool inverse, int64_t steps, double least,
                                                       const py::sequence& tensors, const py::sequence& grads,
                                                       const py::sequence& series) {
  const size_t n = tensors.size() / 2;
  const bool estimated = series.size() > 0;
  if (grads.size()) check_length("residual_flow: grads", grads, tensors.size());
  if (estimated) check_length("residual_flow: series", series, 3);
  auto net = std::make_unique<ResidualLayers>(
      rows, features, int64_t(n), ResidualSettings{activation, preactivated, inverse, estimated, steps, least});
  ResidualViews v;
  const auto take = [&](size_t at, View& of, View& grad) {
    read(tensors[at], of);
    if (grads.size()) read(grads[at], grad);
  };
  for (size_t i = 0; i < n; ++i) {
    take(2 * i, v.weight, v.grad_weight), take(2 * i + 1, v.bias, v.grad_bias);
    net->add(v);
  }
  View betas, grad_betas;
  if (tensors.size() % 2) take(2 * n, betas, grad_betas);
  net->close(betas, grad_betas);
  if (estimated) {
    View weights, noise, inner;
    read(series[0], weights), read(series[1], noise), read(series[2], inner);
    net->estimate(weights, noise, inner);
  }
  return net;
}

// The settings of a chain of planar, radial or Sylvester layers, in the order of LowRankSettings.
static LowRankSettings low_rank_settings(const py::tuple& given) {
  check_length("low_rank: settings", given, 8);
  const auto number = [&](size_t i) { return given[i].cast<int64_t>(); };
  const auto flag = [&](size_t i) { return given[i].cast<bool>(); };
  return {number(0), number(1), given[2].cast<double>(), flag(3), flag(4), flag(5), number(6), number(7)};
}
// Its tensors, or their gradients, at most as many as a layer has.
static int low_rank_views(const char* name, const py::sequence& tensors, LowRankViews& views) {
  const size_t n = tensors.size();
  check_number(name, int64_t(n), 1, kMostLowRankParams);
  for (size_t i = 0; i < n; ++i) read(tensors[i], views.of[i]);
  return int(n);
}

// The settings of a continuous map, in the order of OdeSettings.
static OdeSettings ode_settings(const py::tuple& given) {
  check_length("ode_flow: settings", given, 10);
  const auto number = [&](size_t i) { return given[i].cast<int64_t>(); };
  const auto real = [&](size_t i) { return given[i].cast<double>(); };
  return {number(0), number(1), real(2), real(3), real(4), real(5), number(6), number(7), number(8), number(9)};
}
// Its tensors behind x, or their gradients.
static int ode_views(const char* name, const py::sequence& tensors, OdeViews& views) {
  const size_t n = tensors.size();
  check_number(name, int64_t(n), 1, 2 * kMostOdeLayers + 2);
  for (size_t i = 0; i < n; ++i) read(tensors[i], views.of[i]);
  return int(n);
}

// What kernels are told of a tensor, for tests: address, dtype, sizes, strides; `exchanged`: in one call of C, if it
// can.
static py::tuple seen(py::handle tensor, bool exchanged) {
  View v;
  read(tensor, v, exchanged);
  const auto listed = [&](const int64_t* numbers) {
    return std::vector<int64_t>(numbers, numbers + std::max(v.ndim, 0));
  };
  return py::make_tuple(reinterpret_cast<uintptr_t>(v.data), name_of(v.type), listed(v.size), listed(v.stride));
}

// A map whose network is described beforehand, forward and backward.
template <class Layers, auto FwdArgs, auto Fwd, auto BwdArgs, auto Bwd>
void def_layers(py::module_& m, const char* fwd, const char* bwd) {
  m.def(fwd, [](const Layers& net, const View& x, const View& y, const View& ladj, int threads) {
    check_threads(threads);
    const auto a = FwdArgs(net, x, y, ladj);
    py::gil_scoped_release unlocked;
    Fwd(a, threads);
  });
  m.def(bwd, [](const Layers& net, const View& x, const View& y, const View& grad_y, const View& grad_ladj,
                const View& grad_x, int threads) {
    check_threads(threads);
    const auto a = BwdArgs(net, x, y, grad_y, grad_ladj, grad_x);
    py::gil_scoped_release unlocked;
    Bwd(a, threads);
  });
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "flowkernels CPU kernels; use flowkernels.ops";
  m.attr("compiler") = FK_COMPILER;
#if defined(_OPENMP) || defined(FK_LIBGOMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;  // one thread, however many are asked for
#endif
  m.def("isa", [] { return std::string(isa_name(isa())); });
  m.def("isas", &isas);
  m.def("use_isa", &use_isa);
  m.def("advise_huge", &advise_huge);
  m.def("walk_holds", &walk_holds);
  m.def("are_like", &are_like);
  m.def("are_dense", &are_dense);
  m.def("are_at", &are_at);
  m.attr("exchanges") = exchange::Exchange::get().read != nullptr;
  m.def("seen", &seen);

  py::class_<RqsSpec>(m, "RqsSpec").def(py::init(&rqs_spec));
  m.def("rqs_fwd",
        [](const RqsSpec& s, const View& x, const View& params, const View& y, const View& ladj, int threads) {
          const RqsArgs a = rqs_fwd_args(s, x, params, y, ladj);
          py::gil_scoped_release unlocked;
          rqs_fwd(s, a, threads);
        });
  m.def("rqs_bwd", [](const RqsSpec& s, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
                      const View& grad_x, const View& grad_params, int threads) {
    const RqsArgs a = rqs_bwd_args(s, x, params, grad_y, grad_ladj, grad_x, grad_params);
    py::gil_scoped_release unlocked;
    rqs_bwd(s, a, threads);
  });
  py::class_<MixtureSpec>(m, "MixtureSpec").def(py::init(&mixture_spec));
  m.def("mixture_fwd",
        [](const MixtureSpec& s, const View& x, const View& params, const View& y, const View& ladj, int threads) {
          const MapArgs a = map_fwd_args("mixture", s.params(), x, params, y, ladj);
          py::gil_scoped_release unlocked;
          mixture_fwd(s, a, threads);
        });
  m.def("mixture_bwd", [](const MixtureSpec& s, const View& x, const View& params, const View& grad_y,
                          const View& grad_ladj, const View& grad_x, const View& grad_params, int threads) {
    const MapArgs a = map_bwd_args("mixture", s.params(), x, params, grad_y, grad_ladj, grad_x, grad_params);
    py::gil_scoped_release unlocked;
    mixture_bwd(s, a, threads);
  });
  py::class_<AffineSpec>(m, "AffineSpec").def(py::init(&affine_spec));
  m.def("affine_fwd", [](const AffineSpec& s, bool passes, const View& x, const View& params, const View& shift,
                         const View& mask, const View& y, const View& ladj, int threads) {
    const AffineArgs a = affine_fwd_args(s, passes, x, params, shift, mask, y, ladj);
    py::gil_scoped_release unlocked;
    affine_fwd(s, a, threads);
  });
  m.def("affine_bwd", [](const AffineSpec& s, bool passes, const View& x, const View& params, const View& shift,
                         const View& mask, const View& grad_y, const View& grad_ladj, const View& grad_x,
                         const View& grad_params, const View& grad_shift, int threads) {
    const AffineArgs a =
        affine_bwd_args(s, passes, x, params, shift, mask, grad_y, grad_ladj, grad_x, grad_params, grad_shift);
    py::gil_scoped_release unlocked;
    affine_bwd(s, a, threads);
  });
  py::class_<PolynomialSpec>(m, "PolynomialSpec").def(py::init(&polynomial_spec));
  m.def("polynomial_fwd",
        [](const PolynomialSpec& s, const View& x, const View& params, const View& y, const View& ladj, int threads) {
          const MapArgs a = map_fwd_args("polynomial", s.params(), x, params, y, ladj);
          py::gil_scoped_release unlocked;
          polynomial_fwd(s, a, threads);
        });
  m.def("polynomial_bwd", [](const PolynomialSpec& s, const View& x, const View& params, const View& grad_y,
                             const View& grad_ladj, const View& grad_x, const View& grad_params, int threads) {
    const MapArgs a = map_bwd_args("polynomial", s.params(), x, params, grad_y, grad_ladj, grad_x, grad_params);
    py::gil_scoped_release unlocked;
    polynomial_bwd(s, a, threads);
  });
  py::class_<MonotoneSpec>(m, "MonotoneSpec").def(py::init(&monotone_spec));
  m.def("monotone_fwd", [](const MonotoneSpec& s, const View& x, const View& signal, const std::vector<View>& layers,
                           const View& y, const View& ladj, int threads) {
    check_threads(threads);
    const MonotoneArgs a = monotone_fwd_args(s, x, signal, layers, y, ladj);
    py::gil_scoped_release unlocked;
    if (a.rows > 0 && a.features > 0) monotone_fwd(a, threads);
  });
  m.def("monotone_bwd", [](const MonotoneSpec& s, const View& x, const View& signal, const std::vector<View>& layers,
                           const View& root, const View& grad_y, const View& grad_ladj, const View& grad_x,
                           const View& grad_signal, const std::vector<View>& grads, int threads) {
    check_threads(threads);
    const MonotoneArgs a = monotone_bwd_args(s, x, signal, layers, root, grad_y, grad_ladj, grad_x, grad_signal, grads);
    py::gil_scoped_release unlocked;
    if (a.rows > 0 && a.features > 0) monotone_bwd(a, threads);
  });
  m.def("actnorm_fwd", [](int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                          const View& y, const View& ladj, int threads) {
    const ActNormArgs a = actnorm_fwd_args(channel_dim, inverse, x, log_scale, shift, y, ladj);
    py::gil_scoped_release unlocked;
    actnorm_fwd(a, threads);
  });
  m.def("actnorm_bwd",
        [](int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift, const View& grad_y,
           const View& grad_ladj, const View& grad_x, const View& grad_log_scale, const View& grad_shift, int threads) {
          const ActNormArgs a = actnorm_bwd_args(channel_dim, inverse, x, log_scale, shift, grad_y, grad_ladj, grad_x,
                                                 grad_log_scale, grad_shift);
          py::gil_scoped_release unlocked;
          actnorm_bwd(a, threads);
        });
  m.def("batch_norm_fwd", [](int activation, double eps, const View& x, const View& weight, const View& bias,
                             const View& y, const View& mean, const View& var, int threads) {
    check_threads(threads);
    const BatchNormArgs a = batch_norm_fwd_args(activation, eps, x, weight, bias, y, mean, var);
    py::gil_scoped_release unlocked;
    batch_norm_fwd(a, threads);
  });
  m.def("batch_norm_bwd", [](int activation, double eps, const View& x, const View& weight, const View& bias,
                             const View& y, const View& mean, const View& var, const View& grad_y, const View& grad_x,
                             const View& grad_weight, const View& grad_bias, int threads) {
    check_threads(threads);
    const BatchNormArgs a =
        batch_norm_bwd_args(activation, eps, x, weight, bias, y, mean, var, grad_y, grad_x, grad_weight, grad_bias);
    py::gil_scoped_release unlocked;
    batch_norm_bwd(a, threads);
  });
  py::class_<BlockLayers>(m, "BlockLayers").def(py::init(&block_layers), py::keep_alive<1, 9>());
  def_layers<BlockLayers, block_made_fwd_args, block_made_fwd, block_made_bwd_args, block_made_bwd>(m, "block_made_fwd",
                                                                                                    "block_made_bwd");
  py::class_<ResidualLayers>(m, "ResidualLayers")
      .def(py::init(&residual_layers), py::keep_alive<1, 9>(), py::keep_alive<1, 11>());
  def_layers<ResidualLayers, residual_fwd_args, residual_fwd, residual_bwd_args, residual_bwd>(m, "residual_flow_fwd",
                                                                                               "residual_flow_bwd");
  m.def("low_rank_fwd", [](const py::tuple& settings, const View& x, const py::sequence& params, const View& y,
                           const View& ladj, int threads) {
    check_threads(threads);
    LowRankViews of;
    const int n = low_rank_views("low_rank: the number of parameters", params, of);
    const LowRankArgs a = low_rank_fwd_args(low_rank_settings(settings), x, of, n, y, ladj);
    py::gil_scoped_release unlocked;
    low_rank_fwd(a, threads);
  });
  m.def("low_rank_bwd", [](const py::tuple& settings, const View& x, const py::sequence& params, const View& grad_y,
                           const View& grad_ladj, const View& grad_x, const py::sequence& grads, int threads) {
    check_threads(threads);
    LowRankViews of, of_grads;
    const int n = low_rank_views("low_rank: the number of parameters", params, of);
    check_length("low_rank: gradients", grads, size_t(n));
    low_rank_views("low_rank: gradients", grads, of_grads);
    const LowRankArgs a = low_rank_bwd_args(low_rank_settings(settings), x, of, n, grad_y, grad_ladj, grad_x, of_grads);
    py::gil_scoped_release unlocked;
    low_rank_bwd(a, threads);
  });
  m.def("ode_flow_fwd", [](const py::tuple& settings, const View& x, const py::sequence& tensors, const View& y,
                           const View& ladj, int threads) {
    check_threads(threads);
    OdeViews of;
    const int n = ode_views("ode_flow: the number of tensors", tensors, of);
    const OdeArgs a = ode_flow_fwd_args(ode_settings(settings), x, of, n, y, ladj);
    py::gil_scoped_release unlocked;
    ode_flow_fwd(a, threads);
  });
  m.def("ode_flow_bwd", [](const py::tuple& settings, const View& x, const py::sequence& tensors, const View& grad_y,
                           const View& grad_ladj, const View& grad_x, const py::sequence& grads, int threads) {
    check_threads(threads);
    OdeViews of, of_grads;
    const int n = ode_views("ode_flow: the number of tensors", tensors, of);
    check_length("ode_flow: gradients", grads, size_t(n));
    ode_views("ode_flow: gradients", grads, of_grads);
    const OdeArgs a = ode_flow_bwd_args(ode_settings(settings), x, of, n, grad_y, grad_ladj, grad_x, of_grads);
    py::gil_scoped_release unlocked;
    ode_flow_bwd(a, threads);
  });
  m.def("check_permutation", &check_permutation);
  m.def("lu_fwd", [](int channel_dim, bool inverse, const View& x, const View& lower, const View& upper,
                     const View& log_s, const View& sign_s, const View& permutation, const View& bias, const View& y,
                     const View& ladj, int threads) {
    const LuFactors factors = {lower, upper, log_s, sign_s, permutation, bias};
    const LuArgs a = lu_fwd_args(false, channel_dim, inverse, x, factors, y, ladj);
    if (permutation.given()) check_permutation(permutation);
    py::gil_scoped_release unlocked;
    lu_fwd(a, threads);
  });
  m.def("lu_bwd",
        [](int channel_dim, bool inverse, const View& x, const View& lower, const View& upper, const View& log_s,
           const View& sign_s, const View& permutation, const View& bias, const View& y, const View& grad_y,
           const View& grad_ladj, const View& grad_x, const View& grad_lower, const View& grad_upper,
           const View& grad_log_s, const View& grad_sign_s, const View& grad_bias, int threads) {
          const LuFactors factors = {lower, upper, log_s, sign_s, permutation, bias};
          const LuGrads grads = {grad_lower, grad_upper, grad_log_s, grad_sign_s, grad_bias};
          const LuArgs a = lu_bwd_args(false, channel_dim, inverse, x, factors, y, grad_y, grad_ladj, grad_x, grads);
          if (permutation.given()) check_permutation(permutation);
          py::gil_scoped_release unlocked;
          lu_bwd(a, threads);
        });
  bind_net(m);
  m.def("dense_net", &dense_net, py::keep_alive<0, 3>());
  m.def("net_fwd", [](const NetLayers& net, const View& x, const View& y, int threads) {
    check_threads(threads);
    const NetArgs a = net_fwd_args(net, x, y);
    py::gil_scoped_release unlocked;
    net_fwd(a, threads);
  });
  m.def("net_bwd",
        [](const NetLayers& net, const View& x, const View& y, const View& grad_y, const View& grad_x, int threads) {
          check_threads(threads);
          const NetArgs a = net_bwd_args(net, x, y, grad_y, grad_x);
          py::gil_scoped_release unlocked;
          net_bwd(a, threads);
        });

#define FK_MAP_INIT(kind, Spec) .def(py::init<const Spec&>())
  py::class_<UnivariateMap>(m, "UnivariateMap") FK_MAPS(FK_MAP_INIT);
  py::class_<Columns>(m, "Columns").def(py::init<int64_t, std::vector<int32_t>, std::vector<int32_t>>());
  m.def("flow_layer_fwd", [](const NetLayers& net, const UnivariateMap& map, const Columns& columns, const View& x,
                             const View& y, const View& ladj, int threads) {
    check_threads(threads);
    const FlowLayerArgs a = flow_layer_fwd_args(net, map, columns, x, y, ladj);
    py::gil_scoped_release unlocked;
    flow_layer_fwd(a, threads);
  });
  m.def("flow_layer_bwd", [](const NetLayers& net, const UnivariateMap& map, const Columns& columns, const View& x,
                             const View& grad_y, const View& grad_ladj, const View& grad_x, int threads) {
    check_threads(threads);
    const FlowLayerArgs a = flow_layer_bwd_args(net, map, columns, x, grad_y, grad_ladj, grad_x);
    py::gil_scoped_release unlocked;
    flow_layer_bwd(a, threads);
  });
  m.def("recurrent_inverse_fwd",
        [](const NetLayers& cell, const NetLayers& last, const UnivariateMap& map, const View& z, const View& state,
           const View& gates, const View& value, const View& x, const View& ladj, int threads) {
          check_threads(threads);
          RecurrentArgs a = recurrent_inverse_args(cell, last, map, z, state, gates, value, x);
          recurrent_inverse_fwd_more(a, ladj);
          py::gil_scoped_release unlocked;
          recurrent_inverse_fwd(a, threads);
        });
  m.def("recurrent_inverse_bwd",
        [](const NetLayers& cell, const NetLayers& last, const UnivariateMap& map, const View& z, const View& state,
           const View& gates, const View& value, const View& x, const View& grad_x, const View& grad_ladj,
           const View& grad_z, const View& grad_state, const View& grad_gates, const View& grad_value, int threads) {
          check_threads(threads);
          RecurrentArgs a = recurrent_inverse_args(cell, last, map, z, state, gates, value, x);
          recurrent_inverse_bwd_more(a, grad_x, grad_ladj, grad_z, grad_state, grad_gates, grad_value);
          py::gil_scoped_release unlocked;
          recurrent_inverse_bwd(a, threads);
        });
  py::class_<BoundFlow>(m, "Flow")
      .def(py::init<int64_t>())
      .def("add_layer",
           [](BoundFlow& f, const NetPlan& net, const UnivariateMap& map, const Columns& columns) {
             f.plan->add_layer(map, columns);
             f.nets.push_back(net);
           })
      .def("add_sweep",
           [](BoundFlow& f, const NetPlan& net, const UnivariateMap& map) {
             f.plan->add_sweep(map);
             f.nets.push_back(net);
           })
      .def("add_order", [](BoundFlow& f, const std::vector<int32_t>& order) { f.plan->add_order(order); })
      .def("add_lu", [](BoundFlow& f, bool inverse, const std::vector<int32_t>& permutation,
                        bool has_bias) { f.plan->add_lu(inverse, permutation, has_bias); })
      .def("add_scale", [](BoundFlow& f, bool inverse, bool is_log,
                           bool has_shift) { f.plan->add_scale(inverse, is_log, has_shift); })
      .def("add_normal", [](BoundFlow& f) { f.plan->add_normal(); })
      .def("add_elementwise", [](BoundFlow& f, const UnivariateMap& map, const std::vector<int32_t>& outputs) {
        f.plan->add_elementwise(map, outputs);
      });
  // The tensors stay alive with it: some are copies that nobody else has.
  py::class_<FlowCall>(m, "FlowCall")
      .def(py::init(&flow_call), py::keep_alive<1, 4>())
      .def("kept_size", &FlowCall::kept_size)
      .def("fwd",
           [](FlowCall& call, const View& x, const View& y, const View& ladj, const View& kept, int threads) {
             check_threads(threads);
             const FlowArgs a = call.fwd(x, y, ladj, kept);
             py::gil_scoped_release unlocked;
             flow_fwd(a, threads);
           })
      // grads: room beside each tensor, None where it is not wanted.
      .def("bwd",
           [](FlowCall& call, const View& x, const View& grad_y, const View& grad_ladj, const View& grad_x,
              const View& kept, const py::sequence& grads, int threads) {
             check_threads(threads);
             check_length("flow: grads", grads, size_t(call.n_tensors()));
             View v;
             for (int64_t i = 0; i < call.n_tensors(); ++i) {
               read(grads[size_t(i)], v);
               call.take_grad(i, v);
             }
             const FlowArgs a = call.bwd(x, grad_y, grad_ladj, grad_x, kept);
             py::gil_scoped_release unlocked;
             flow_bwd(a, threads);
           })
      // The gradients of all tensors in one, each from its place on.
      .def("bwd_flat", [](FlowCall& call, const View& x, const View& grad_y, const View& grad_ladj, const View& grad_x,
                          const View& kept, const View& flat, const std::vector<int64_t>& places, int threads) {
        check_threads(threads);
        call.take_grads(flat, places);
        const FlowArgs a = call.bwd(x, grad_y, grad_ladj, grad_x, kept);
        py::gil_scoped_release unlocked;
        flow_bwd(a, threads);
      });
  m.def("sweep_fwd", [](const NetLayers& net, const UnivariateMap& map, const View& z, const View& x, const View& ladj,
                        bool circle_shift, bool zero_outside, const View& periodic_features, int threads) {
    check_threads(threads);
    SweepArgs a = sweep_fwd_args(net, map, z, x, ladj, circle_shift);
    sweep_fwd_more(a, periodic_features, zero_outside);
    py::gil_scoped_release unlocked;
    sweep_fwd(a, threads);
  });
  m.def("sweep_bwd", [](const NetLayers& net, const UnivariateMap& map, const View& z, const View& x,
                        const View& grad_x, const View& grad_ladj, const View& grad_z, const View& seen,
                        const View& slope, const View& grad_seen, int threads) {
    check_threads(threads);
    SweepArgs a = sweep_bwd_args(net, map, z, x, grad_x, grad_ladj, grad_z);
    sweep_bwd_more(a, seen, slope, grad_seen);
    py::gil_scoped_release unlocked;
    sweep_bwd(a, threads);
  });
}
