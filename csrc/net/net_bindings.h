// A network as Python hands it over: the classes that both modules have, each its own.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../common/view_caster.h"
#include "net_args.h"

namespace fk {

namespace py = pybind11;

inline std::unique_ptr<NetLayers> net_layers(const py::list& layers, int64_t rows, bool residual, int activation,
                                             int last) {
  auto net = std::make_unique<NetLayers>(int64_t(layers.size()), rows, residual, activation, last);
  LayerViews v;
  View* const tensors[] = {&v.weight,      &v.bias,      &v.add,      &v.gate,     &v.kept,
                           &v.grad_weight, &v.grad_bias, &v.grad_add, &v.grad_gate};
  for (const py::handle layer : layers) {
    if (!PyTuple_Check(layer.ptr()) || PyTuple_GET_SIZE(layer.ptr()) != 10)
      throw py::type_error("net: a layer must be a mask and nine tensors, got another object");
    const py::handle mask = PyTuple_GET_ITEM(layer.ptr(), 0);
    for (int i = 0; i < 9; ++i) read(PyTuple_GET_ITEM(layer.ptr(), i + 1), *tensors[i]);
    net->add(v, mask.is_none() ? nullptr : mask.cast<std::shared_ptr<LayerMask>>());
  }
  net->close();
  return net;
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
  py::class_<NetLayers>(m, "Net", py::module_local()).def(py::init(&net_layers), py::keep_alive<1, 2>());
}

}  // namespace fk
