// A network as Python hands it over: the classes that both modules have, each its own.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../common/view_caster.h"
#include "net_args.h"

namespace fk {

namespace py = pybind11;

// What a network is, apart from its tensors: Python's NetSpec, made once for all its calls.
struct NetPlan {
  std::vector<std::shared_ptr<const LayerMask>> masks;  // one per layer; null: not masked
  bool residual;
  int activation, last;
  bool has_bias;
  std::vector<bool> adds, gates, scales;  // which layers have them; a shift with each scale

  NetPlan(std::vector<std::shared_ptr<LayerMask>> m, bool is_residual, int act, int act_last, bool bias,
          std::vector<bool> has_add, std::vector<bool> has_gate, std::vector<bool> has_scale)
      : masks(m.begin(), m.end()),
        residual(is_residual),
        activation(act),
        last(act_last),
        has_bias(bias),
        adds(std::move(has_add)),
        gates(std::move(has_gate)),
        scales(std::move(has_scale)) {
    if (adds.size() != masks.size() || gates.size() != masks.size() || scales.size() != masks.size())
      refuse(
          "net: adds, gates and scales", "one flag per layer, " + std::to_string(masks.size()),
          std::to_string(adds.size()) + ", " + std::to_string(gates.size()) + " and " + std::to_string(scales.size()));
  }
  size_t n_tensors() const {
    size_t n = masks.size() * (has_bias ? 2 : 1);
    for (size_t i = 0; i < masks.size(); ++i) n += size_t(adds[i]) + size_t(gates[i]) + 2 * size_t(scales[i]);
    return n;
  }
};

inline void check_length(const char* name, const py::sequence& given, size_t length) {
  if (given.size() != length) refuse(name, std::to_string(length) + " entries", std::to_string(given.size()));
}

// A call's network, whose tensors are those from `first` on. `kept` and `grads` as below.
inline std::unique_ptr<NetLayers> read_layers(const NetPlan& plan, int64_t rows, const py::sequence& tensors,
                                              size_t first, const py::sequence& kept, const py::sequence& grads) {
  const size_t n = plan.masks.size(), per_layer = plan.has_bias ? 2 : 1;
  auto net = std::make_unique<NetLayers>(int64_t(n), rows, plan.residual, plan.activation, plan.last);
  size_t add = first + n * per_layer, gate = add;
  for (size_t i = 0; i < n; ++i) gate += size_t(plan.adds[i]);
  size_t scale = gate;
  for (size_t i = 0; i < n; ++i) scale += size_t(plan.gates[i]);
  LayerViews v;
  const auto take = [&](size_t at, View& of, View& grad) {
    read(tensors[at], of);
    if (grads.size()) read(grads[at], grad);
  };
  for (size_t i = 0; i < n; ++i) {
    take(first + i * per_layer, v.weight, v.grad_weight);
    if (plan.has_bias) take(first + i * per_layer + 1, v.bias, v.grad_bias);
    for (View* of_some : {&v.add, &v.grad_add, &v.gate, &v.grad_gate, &v.scale, &v.shift, &v.grad_scale, &v.grad_shift})
      of_some->ndim = -1, of_some->data = nullptr;
    if (plan.adds[i]) take(add++, v.add, v.grad_add);
    if (plan.gates[i]) take(gate++, v.gate, v.grad_gate);
    if (plan.scales[i]) {
      take(scale++, v.scale, v.grad_scale);
      take(scale++, v.shift, v.grad_shift);
    }
    if (kept.size()) read(kept[i], v.kept);
    net->add(v, plan.masks[i]);
  }
  net->close();
  return net;
}

// A call's network. `tensors`: weight (and bias) of each layer, what is added in layers that have it, gates, scale and
// shift in layers that have them. `kept`: per layer what enters it, or none at all. `grads`: room beside each tensor,
// or none at all.
inline std::unique_ptr<NetLayers> net_layers(const NetPlan& plan, int64_t rows, const py::sequence& tensors,
                                             const py::sequence& kept, const py::sequence& grads) {
  check_length("net: tensors", tensors, plan.n_tensors());
  if (kept.size()) check_length("net: kept", kept, plan.masks.size());
  if (grads.size()) check_length("net: grads", grads, plan.n_tensors());
  return read_layers(plan, rows, tensors, 0, kept, grads);
}

inline py::tuple activation_names() {
  py::tuple names(sizeof(kActivationNames) / sizeof(*kActivationNames));
  for (size_t i = 0; i < names.size(); ++i) names[i] = kActivationNames[i];
  return names;
}

// A mask: n_in, then its orders and limits as numbers and, for a device's kernels, there.
inline void bind_net(py::module_& m) {
  using Ints = LayerMask::Ints;
  py::class_<LayerMask, std::shared_ptr<LayerMask>>(m, "LayerMask", py::module_local())
      .def(py::init<int64_t, Ints, Ints, Ints>())
      .def(py::init([](int64_t n_in, Ints in, Ints out, Ints limit, const View& in_there, const View& out_there,
                       const View& limit_there) {
             const std::array<const View*, 3> there = {&in_there, &out_there, &limit_there};
             return std::make_shared<LayerMask>(n_in, std::move(in), std::move(out), std::move(limit), &there);
           }),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>(), py::keep_alive<1, 8>());
  py::class_<NetPlan>(m, "NetSpec", py::module_local())
      .def(py::init<std::vector<std::shared_ptr<LayerMask>>, bool, int, int, bool, std::vector<bool>, std::vector<bool>,
                    std::vector<bool>>(),
           py::kw_only(), py::arg("masks"), py::arg("residual"), py::arg("activation"), py::arg("last"),
           py::arg("has_bias"), py::arg("adds"), py::arg("gates"), py::arg("scales"));
  // The tensors stay alive with it: some are copies that nobody else has.
  py::class_<NetLayers>(m, "Net", py::module_local()).def(py::init(&net_layers), py::keep_alive<1, 4>());
  m.attr("activations") = activation_names();
}

}  // namespace fk
