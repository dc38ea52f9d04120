// Every entry point of the CUDA module, on one screen: those of bindings.cpp, with a device and a stream in place of a
// number of threads. The types are this module's own, so that it lives beside the CPU's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "actnorm/actnorm.h"
#include "affine/affine.h"
#include "autoregressive_inverse/autoregressive_inverse.h"
#include "common/device.h"
#include "common/view_caster.h"
#include "lu_linear/lu_linear.h"
#include "mixture/mixture.h"
#include "monotone_net/monotone_net.h"
#include "net/epilogue.h"
#include "net/net_bindings.h"
#include "polynomial/polynomial.h"
#include "rqs/rqs.h"

namespace py = pybind11;
using namespace fk;

static CudaStream stream_of(int device, uintptr_t stream) { return {device, reinterpret_cast<void*>(stream)}; }

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "flowkernels CUDA kernels; use flowkernels.ops";
  m.attr("archs") = FK_CUDA_ARCHS;
  m.def("devices", &devices);
  m.def("why_no_kernel", &why_no_kernel);

  py::class_<RqsSpec>(m, "RqsSpec", py::module_local()).def(py::init(&rqs_spec));
  m.def("rqs_fwd", [](const RqsSpec& s, const View& x, const View& params, const View& y, const View& ladj, int device,
                      uintptr_t stream) {
    const RqsArgs a = rqs_fwd_args(s, x, params, y, ladj);
    py::gil_scoped_release unlocked;
    rqs_fwd(s, a, stream_of(device, stream));
  });
  m.def("rqs_bwd", [](const RqsSpec& s, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
                      const View& grad_x, const View& grad_params, int device, uintptr_t stream) {
    const RqsArgs a = rqs_bwd_args(s, x, params, grad_y, grad_ladj, grad_x, grad_params);
    py::gil_scoped_release unlocked;
    rqs_bwd(s, a, stream_of(device, stream));
  });
  py::class_<MixtureSpec>(m, "MixtureSpec", py::module_local()).def(py::init(&mixture_spec));
  m.def("mixture_fwd", [](const MixtureSpec& s, const View& x, const View& params, const View& y, const View& ladj,
                          int device, uintptr_t stream) {
    const MapArgs a = map_fwd_args("mixture", s.params(), x, params, y, ladj);
    py::gil_scoped_release unlocked;
    mixture_fwd(s, a, stream_of(device, stream));
  });
  m.def("mixture_bwd",
        [](const MixtureSpec& s, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
           const View& grad_x, const View& grad_params, int device, uintptr_t stream) {
          const MapArgs a = map_bwd_args("mixture", s.params(), x, params, grad_y, grad_ladj, grad_x, grad_params);
          py::gil_scoped_release unlocked;
          mixture_bwd(s, a, stream_of(device, stream));
        });
  py::class_<PolynomialSpec>(m, "PolynomialSpec", py::module_local()).def(py::init(&polynomial_spec));
  m.def("polynomial_fwd", [](const PolynomialSpec& s, const View& x, const View& params, const View& y,
                             const View& ladj, int device, uintptr_t stream) {
    const MapArgs a = map_fwd_args("polynomial", s.params(), x, params, y, ladj);
    py::gil_scoped_release unlocked;
    polynomial_fwd(s, a, stream_of(device, stream));
  });
  m.def("polynomial_bwd",
        [](const PolynomialSpec& s, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
           const View& grad_x, const View& grad_params, int device, uintptr_t stream) {
          const MapArgs a = map_bwd_args("polynomial", s.params(), x, params, grad_y, grad_ladj, grad_x, grad_params);
          py::gil_scoped_release unlocked;
          polynomial_bwd(s, a, stream_of(device, stream));
        });
  py::class_<MonotoneSpec>(m, "MonotoneSpec", py::module_local()).def(py::init(&monotone_spec));
  m.def("monotone_room", [](const MonotoneSpec& s, const std::vector<int64_t>& widths, int type, int device) {
    const MonotoneRoom room = monotone_room(s, checked_widths(widths), type, device);
    return py::make_tuple(room.fits, room.packed, room.sums);
  });
  m.def("monotone_fwd",
        [](const MonotoneSpec& s, const View& x, const View& signal, const std::vector<View>& layers, const View& y,
           const View& ladj, const View& packed, const View& terms, int device, uintptr_t stream) {
          const MonotoneArgs a = monotone_fwd_args(s, x, signal, layers, y, ladj);
          const MonotoneWork w = monotone_fwd_work(a, packed, terms, device);
          py::gil_scoped_release unlocked;
          if (a.rows > 0 && a.features > 0) monotone_fwd(a, w, stream_of(device, stream));
        });
  m.def("monotone_bwd", [](const MonotoneSpec& s, const View& x, const View& signal, const std::vector<View>& layers,
                           const View& root, const View& grad_y, const View& grad_ladj, const View& grad_x,
                           const View& grad_signal, const std::vector<View>& grads, const View& packed,
                           const View& sums, int64_t slices, int device, uintptr_t stream) {
    const MonotoneArgs a = monotone_bwd_args(s, x, signal, layers, root, grad_y, grad_ladj, grad_x, grad_signal, grads);
    const MonotoneWork w = monotone_bwd_work(a, packed, sums, slices, device);
    py::gil_scoped_release unlocked;
    if (a.rows > 0 && a.features > 0) monotone_bwd(a, w, stream_of(device, stream));
  });
  py::class_<AffineSpec>(m, "AffineSpec", py::module_local()).def(py::init(&affine_spec));
  m.def("affine_fwd", [](const AffineSpec& s, bool passes, const View& x, const View& params, const View& shift,
                         const View& mask, const View& y, const View& ladj, int device, uintptr_t stream) {
    const AffineArgs a = affine_fwd_args(s, passes, x, params, shift, mask, y, ladj);
    py::gil_scoped_release unlocked;
    affine_fwd(s, a, stream_of(device, stream));
  });
  m.def("affine_bwd", [](const AffineSpec& s, bool passes, const View& x, const View& params, const View& shift,
                         const View& mask, const View& grad_y, const View& grad_ladj, const View& grad_x,
                         const View& grad_params, const View& grad_shift, int device, uintptr_t stream) {
    const AffineArgs a =
        affine_bwd_args(s, passes, x, params, shift, mask, grad_y, grad_ladj, grad_x, grad_params, grad_shift);
    py::gil_scoped_release unlocked;
    affine_bwd(s, a, stream_of(device, stream));
  });
  m.def("actnorm_fwd", [](int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                          const View& y, const View& ladj, int device, uintptr_t stream) {
    const ActNormArgs a = actnorm_fwd_args(channel_dim, inverse, x, log_scale, shift, y, ladj);
    py::gil_scoped_release unlocked;
    actnorm_fwd(a, stream_of(device, stream));
  });
  m.def("actnorm_bwd", [](int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                          const View& grad_y, const View& grad_ladj, const View& grad_x, const View& grad_log_scale,
                          const View& grad_shift, const View& sums, int64_t slices, int device, uintptr_t stream) {
    const ActNormArgs a = actnorm_bwd_args(channel_dim, inverse, x, log_scale, shift, grad_y, grad_ladj, grad_x,
                                           grad_log_scale, grad_shift);
    double* const to = actnorm_sums(a, sums, slices);
    py::gil_scoped_release unlocked;
    actnorm_bwd(a, to, slices, stream_of(device, stream));
  });
  m.def("lu_fits", &lu_fits);
  m.def("lu_fuses", &lu_fuses);
  m.def("lu_fwd", [](int channel_dim, bool inverse, const View& x, const View& lower, const View& upper,
                     const View& log_s, const View& sign_s, const View& permutation, const View& bias, const View& y,
                     const View& ladj, int device, uintptr_t stream) {
    const LuFactors factors = {lower, upper, log_s, sign_s, permutation, bias};
    const LuArgs a = lu_fwd_args(true, channel_dim, inverse, x, factors, y, ladj);
    py::gil_scoped_release unlocked;
    lu_fwd(a, stream_of(device, stream));
  });
  m.def("lu_bwd", [](int channel_dim, bool inverse, const View& x, const View& lower, const View& upper,
                     const View& log_s, const View& sign_s, const View& permutation, const View& bias, const View& y,
                     const View& grad_y, const View& grad_ladj, const View& grad_x, const View& grad_lower,
                     const View& grad_upper, const View& grad_log_s, const View& grad_sign_s, const View& grad_bias,
                     const View& sums, const View& h, const View& g_h, int64_t slices, int device, uintptr_t stream) {
    const LuFactors factors = {lower, upper, log_s, sign_s, permutation, bias};
    const LuGrads grads = {grad_lower, grad_upper, grad_log_s, grad_sign_s, grad_bias};
    const LuArgs a = lu_bwd_args(true, channel_dim, inverse, x, factors, y, grad_y, grad_ladj, grad_x, grads);
    const LuWork w = lu_work(a, lu_fuses(int(a.type), inverse, a.channels, device), sums, h, g_h, slices);
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
      .def(py::init<const AffineSpec&>())
      .def(py::init<const MixtureSpec&>())
      .def(py::init<const PolynomialSpec&>())
      .def(py::init<const RqsSpec&>());
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
                        bool circle_shift, const SweepSteps& steps, const View& packed, int device, uintptr_t stream) {
    const SweepArgs a = sweep_fwd_args(net, map, z, x, ladj, circle_shift);
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
