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
#include "masked_linear/net_args.h"
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

  m.def("epilogue_fwd", [](int type, int activation, int64_t rows, int64_t columns,
                           const std::array<MatrixNumbers, 6>& matrices, int device, uintptr_t stream) {
    const EpilogueArgs a = epilogue_args(type, activation, rows, columns, matrices);
    py::gil_scoped_release unlocked;
    epilogue_fwd(a, stream_of(device, stream));
  });
  m.def("epilogue_bwd",
        [](int type, int activation, int64_t rows, int64_t columns, const std::array<MatrixNumbers, 6>& matrices,
           uintptr_t sums, int64_t sums_columns, uintptr_t sums_at, int64_t slices, int device, uintptr_t stream) {
          const EpilogueArgs a = epilogue_args(type, activation, rows, columns, matrices);
          py::gil_scoped_release unlocked;
          epilogue_bwd(a, reinterpret_cast<double*>(sums), sums_columns, reinterpret_cast<const int32_t*>(sums_at),
                       slices, stream_of(device, stream));
        });
  m.def("epilogue_sums",
        [](int type, uintptr_t sums, int64_t slices, int64_t columns, uintptr_t out, int device, uintptr_t stream) {
          if (!sums || !out) throw std::invalid_argument("epilogue: null data pointer");
          py::gil_scoped_release unlocked;
          epilogue_sums(DType(type), reinterpret_cast<const double*>(sums), slices, columns,
                        reinterpret_cast<void*>(out), stream_of(device, stream));
        });
  m.def("masked_pack", [](int64_t bytes_of_number, bool unpack, const std::vector<PackingNumbers>& numbers, int device,
                          uintptr_t stream) {
    const std::vector<Packing> layers = packings_of(numbers);
    py::gil_scoped_release unlocked;
    masked_pack(bytes_of_number, unpack, layers, stream_of(device, stream));
  });

  py::class_<NetLayers>(m, "Net", py::module_local())
      .def(py::init<const std::vector<LayerNumbers>&, bool, int, int>())
      .def("packed", [](const NetLayers& net) { return sweep_packed(net.spec); });
  py::class_<UnivariateMap>(m, "UnivariateMap", py::module_local())
      .def(py::init([](const AffineSpec& s) { return UnivariateMap{true, s, {}}; }))
      .def(py::init([](const RqsSpec& s) { return UnivariateMap{false, {}, s}; }));
  m.def("sweep_fits", &sweep_fits);
  const auto sweep_work = [](uintptr_t steps, int64_t n_steps, uintptr_t packed) {
    if (!steps || !packed) throw std::invalid_argument("sweep: null data pointer");
    return SweepWork{reinterpret_cast<const SweepStep*>(steps), n_steps, reinterpret_cast<void*>(packed)};
  };
  m.def("sweep_fwd", [=](const NetLayers& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                         uintptr_t z, int64_t z_stride, uintptr_t x, uintptr_t ladj, bool half_turn, uintptr_t steps,
                         int64_t n_steps, uintptr_t packed, int device, uintptr_t stream) {
    SweepArgs a = sweep_args(net.spec, map, type, rows, features, z, z_stride, x);
    a.ladj = reinterpret_cast<void*>(ladj);
    if (!a.ladj) throw std::invalid_argument("sweep: null data pointer");
    if (half_turn) a.turn = half_turn_of(map);
    const SweepWork w = sweep_work(steps, n_steps, packed);
    py::gil_scoped_release unlocked;
    sweep_fwd(a, w, stream_of(device, stream));
  });
  m.def("sweep_bwd", [=](const NetLayers& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                         uintptr_t z, int64_t z_stride, uintptr_t x, uintptr_t grad_x, uintptr_t grad_ladj,
                         uintptr_t grad_z, uintptr_t steps, int64_t n_steps, uintptr_t packed,
                         const std::vector<std::array<uintptr_t, 2>>& units, int device, uintptr_t stream) {
    SweepArgs a = sweep_args(net.spec, map, type, rows, features, z, z_stride, x);
    a.grad_x = reinterpret_cast<void*>(grad_x);
    a.grad_ladj = reinterpret_cast<void*>(grad_ladj);
    a.grad_z = reinterpret_cast<void*>(grad_z);
    const SweepWork w = sweep_work(steps, n_steps, packed);
    if (units.size() != net.layers.size() || !units.back()[0]) throw std::invalid_argument("sweep: no parameters");
    std::vector<LayerUnits> of_layers;
    for (const auto& u : units) of_layers.push_back({reinterpret_cast<void*>(u[0]), reinterpret_cast<void*>(u[1])});
    py::gil_scoped_release unlocked;
    sweep_bwd(a, w, of_layers.data(), stream_of(device, stream));
  });
}
