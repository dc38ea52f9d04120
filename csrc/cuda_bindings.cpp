// Every entry point of the CUDA module, on one screen: those of bindings.cpp, with a device and a stream in place of a
// number of threads. The types are this module's own, so that it lives beside the CPU's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "actnorm/actnorm.h"
#include "affine/affine.h"
#include "autoregressive_inverse/autoregressive_inverse.h"
#include "common/device.h"
#include "lu_linear/lu_linear.h"
#include "masked_linear/epilogue.h"
#include "masked_linear/net_bindings.h"
#include "rqs/rqs.h"

namespace py = pybind11;
using namespace fk;

static CudaStream stream_of(int device, uintptr_t stream) { return {device, reinterpret_cast<void*>(stream)}; }

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "flowkernels CUDA kernels; use flowkernels.ops";
  m.attr("archs") = FK_CUDA_ARCHS;
  m.def("device_count", &device_count);

  py::class_<RqsSpec>(m, "RqsSpec", py::module_local()).def(py::init(&rqs_spec));
  const auto rqs = [](bool backward) {
    return [backward](const RqsSpec& s, const std::vector<std::array<int64_t, 3>>& dims, int64_t features,
                      int64_t x_stride, int64_t params_stride, int x_type, int params_type,
                      const std::array<uintptr_t, 8>& tensors, int device, uintptr_t stream) {
      const RqsArgs a = rqs_args(backward, dims, features, x_stride, params_stride, x_type, params_type, tensors);
      py::gil_scoped_release unlocked;
      const CudaStream on = stream_of(device, stream);
      backward ? rqs_bwd(s, a, on) : rqs_fwd(s, a, on);
    };
  };
  m.def("rqs_fwd", rqs(false));
  m.def("rqs_bwd", rqs(true));
  py::class_<AffineSpec>(m, "AffineSpec", py::module_local()).def(py::init(&affine_spec));
  const auto affine = [](bool backward) {
    return [backward](const AffineSpec& s, const std::vector<int64_t>& sizes, int event_dims, int x_type,
                      int params_type, const std::vector<StridedTensor>& tensors, const std::array<uintptr_t, 5>& pass,
                      uintptr_t ladj, int device, uintptr_t stream) {
      const AffineArgs a(s, backward, sizes, event_dims, x_type, params_type, tensors, pass, ladj);
      py::gil_scoped_release unlocked;
      const CudaStream on = stream_of(device, stream);
      backward ? affine_bwd(s, a, on) : affine_fwd(s, a, on);
    };
  };
  m.def("affine_fwd", affine(false));
  m.def("affine_bwd", affine(true));

  m.def("actnorm_fwd",
        [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x, uintptr_t log_scale,
           uintptr_t shift, const ChannelNumbers& y, uintptr_t ladj, int device, uintptr_t stream) {
          const ActNormArgs a = actnorm_fwd_args(type, inverse, sizes, x, log_scale, shift, y, ladj);
          py::gil_scoped_release unlocked;
          actnorm_fwd(a, stream_of(device, stream));
        });
  m.def("actnorm_bwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                          uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& grad_y, uintptr_t grad_ladj,
                          const ChannelNumbers& grad_x, const std::array<uintptr_t, 2>& grads, uintptr_t sums,
                          int64_t slices, int device, uintptr_t stream) {
    const ActNormArgs a = actnorm_bwd_args(type, inverse, sizes, x, log_scale, shift, grad_y, grad_ladj, grad_x, grads);
    py::gil_scoped_release unlocked;
    actnorm_bwd(a, reinterpret_cast<double*>(sums), slices, stream_of(device, stream));
  });

  m.def("lu_fits", &lu_fits);
  m.def("lu_fuses", &lu_fuses);
  m.def("lu_fwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                     const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, uintptr_t ladj, int device,
                     uintptr_t stream) {
    const LuArgs a = lu_fwd_args(type, inverse, sizes, x, factors, y, ladj);
    py::gil_scoped_release unlocked;
    lu_fwd(a, stream_of(device, stream));
  });
  m.def("lu_bwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                     const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, const ChannelNumbers& grad_y,
                     uintptr_t grad_ladj, const ChannelNumbers& grad_x, const std::array<uintptr_t, 5>& grads,
                     const std::array<uintptr_t, 3>& work, int64_t slices, int device, uintptr_t stream) {
    const LuArgs a = lu_bwd_args(type, inverse, sizes, x, factors, y, grad_y, grad_ladj, grad_x, grads);
    const LuWork w = {reinterpret_cast<double*>(work[0]), slices, reinterpret_cast<void*>(work[1]),
                      reinterpret_cast<void*>(work[2])};
    py::gil_scoped_release unlocked;
    lu_bwd(a, w, stream_of(device, stream));
  });

  using Ints = std::vector<int32_t>;
  py::class_<DeviceOrder>(m, "DeviceOrder", py::module_local())
      .def(py::init<const Ints&, const View&>(), py::keep_alive<1, 3>());
  py::class_<PackLayout>(m, "PackLayout", py::module_local())
      .def(py::init([](int64_t n_out, int64_t n_in, const std::array<Ints, 5>& values, const py::tuple& there) {
             View views[5];
             std::array<const View*, 5> pointers;
             if (there.size() != 5) throw py::type_error("pack: tensors must be five, got another number");
             for (size_t i = 0; i < 5; ++i) read(there[i], views[i]), pointers[i] = &views[i];
             return std::make_unique<PackLayout>(n_out, n_in, values, pointers);
           }),
           py::keep_alive<1, 5>());
  // Per matrix: the tensor, and the order of its columns or None.
  const auto epilogue = [](int activation, const py::list& matrices) {
    View views[6];
    std::array<MatrixViews, 6> of;
    if (matrices.size() != 6) throw py::type_error("epilogue: matrices must be six, got another number");
    for (size_t i = 0; i < 6; ++i) {
      const py::tuple pair = matrices[i];
      if (pair.size() != 2)
        throw py::type_error("epilogue: a matrix must be a tensor and an order, got another object");
      read(pair[0], views[i]);
      of[i] = {&views[i], pair[1].is_none() ? nullptr : pair[1].cast<const DeviceOrder*>()};
    }
    return epilogue_args(activation, of);
  };
  m.def("epilogue_fwd", [=](int activation, const py::list& matrices, int device, uintptr_t stream) {
    const EpilogueArgs a = epilogue(activation, matrices);
    py::gil_scoped_release unlocked;
    epilogue_fwd(a, stream_of(device, stream));
  });
  m.def("epilogue_bwd", [=](int activation, const py::list& matrices, const View& sums, int64_t first,
                            const DeviceOrder* sums_at, int64_t slices, int device, uintptr_t stream) {
    const EpilogueArgs a = epilogue(activation, matrices);
    const EpilogueSums to = epilogue_sums_args(a, sums, first, sums_at, slices);
    py::gil_scoped_release unlocked;
    epilogue_bwd(a, to.data, to.columns, to.at, to.slices, stream_of(device, stream));
  });
  m.def("epilogue_sums", [](const View& sums, const View& out, int device, uintptr_t stream) {
    check_epilogue_sums(sums, out);
    py::gil_scoped_release unlocked;
    epilogue_sums(out.type, static_cast<const double*>(sums.data), sums.size[0], sums.size[1], out.data,
                  stream_of(device, stream));
  });
  // Per layer: weight, packed, layout.
  m.def("masked_pack", [](bool unpack, const py::list& layers, int device, uintptr_t stream) {
    std::vector<Packing> packings;
    DType type = DType::other;
    View weight, packed;
    for (const py::handle layer : layers) {
      const auto [w, p, layout] = layer.cast<std::tuple<py::object, py::object, const PackLayout*>>();
      read(w, weight), read(p, packed);
      if (packings.empty()) type = weight.type;
      packings.push_back(packing_of(type, weight, packed, *layout));
    }
    py::gil_scoped_release unlocked;
    masked_pack(type, unpack, packings, stream_of(device, stream));
  });

  bind_net(m);
  py::class_<UnivariateMap>(m, "UnivariateMap", py::module_local())
      .def(py::init([](const AffineSpec& s) { return UnivariateMap{true, s, {}}; }))
      .def(py::init([](const RqsSpec& s) { return UnivariateMap{false, {}, s}; }));
  m.def("sweep_fits", &sweep_fits);
  m.def("sweep_packed", [](const NetLayers& net) { return sweep_packed(net.spec); });
  py::class_<SweepSteps>(m, "SweepSteps", py::module_local())
      .def(py::init([](const std::vector<std::shared_ptr<LayerMask>>& masks,
                       const std::vector<std::array<int32_t, 4>>& steps, const View& there) {
             return std::make_unique<SweepSteps>(
                 std::vector<std::shared_ptr<const LayerMask>>(masks.begin(), masks.end()), steps, there);
           }),
           py::keep_alive<1, 4>());
  m.def("sweep_fwd", [](const NetLayers& net, const UnivariateMap& map, const View& z, const View& x, const View& ladj,
                        bool half_turn, const SweepSteps& steps, const View& packed, int device, uintptr_t stream) {
    const SweepArgs a = sweep_fwd_args(net, map, z, x, ladj, half_turn);
    const SweepWork w = sweep_work(a, net, steps, packed);
    py::gil_scoped_release unlocked;
    sweep_fwd(a, w, stream_of(device, stream));
  });
  // units: of every layer, value and gradient.
  m.def("sweep_bwd",
        [](const NetLayers& net, const UnivariateMap& map, const View& z, const View& x, const View& grad_x,
           const View& grad_ladj, const View& grad_z, const SweepSteps& steps, const View& packed,
           const std::vector<std::array<py::object, 2>>& units, int device, uintptr_t stream) {
          const SweepArgs a = sweep_bwd_args(net, map, z, x, grad_x, grad_ladj, grad_z);
          const SweepWork w = sweep_work(a, net, steps, packed);
          std::vector<std::array<View, 2>> views(units.size());
          std::vector<std::array<const View*, 2>> pointers;
          for (size_t i = 0; i < units.size(); ++i) {
            for (size_t k = 0; k < 2; ++k) read(units[i][k], views[i][k]);
            pointers.push_back({&views[i][0], &views[i][1]});
          }
          const std::vector<LayerUnits> of_layers = sweep_units(net, pointers);
          py::gil_scoped_release unlocked;
          sweep_bwd(a, w, of_layers.data(), stream_of(device, stream));
        });
}
