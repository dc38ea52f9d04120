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
#include "common/isa.h"
#include "common/parallel.h"
#include "flow_layer/flow_layer.h"
#include "lu_linear/lu_linear.h"
#include "masked_linear/net_bindings.h"
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

PYBIND11_MODULE(_C, m) {
  m.doc() = "flowkernels CPU kernels; use flowkernels.ops";
  m.attr("compiler") = FK_COMPILER;
  m.def("isa", [] { return std::string(isa_name(isa())); });
  m.def("isas", &isas);
  m.def("use_isa", &use_isa);
  m.def("advise_huge", &advise_huge);

  py::class_<RqsSpec>(m, "RqsSpec").def(py::init(&rqs_spec));
  const auto rqs = [](bool backward) {
    return [backward](const RqsSpec& s, const std::vector<std::array<int64_t, 3>>& dims, int64_t features,
                      int64_t x_stride, int64_t params_stride, int x_type, int params_type,
                      const std::array<uintptr_t, 8>& tensors, int threads) {
      const RqsArgs a = rqs_args(backward, dims, features, x_stride, params_stride, x_type, params_type, tensors);
      py::gil_scoped_release unlocked;
      backward ? rqs_bwd(s, a, threads) : rqs_fwd(s, a, threads);
    };
  };
  m.def("rqs_fwd", rqs(false));
  m.def("rqs_bwd", rqs(true));
  py::class_<AffineSpec>(m, "AffineSpec").def(py::init(&affine_spec));
  const auto affine = [](bool backward) {
    return [backward](const AffineSpec& s, const std::vector<int64_t>& sizes, int event_dims, int x_type,
                      int params_type, const std::vector<StridedTensor>& tensors, const std::array<uintptr_t, 5>& pass,
                      uintptr_t ladj, int threads) {
      const AffineArgs a(s, backward, sizes, event_dims, x_type, params_type, tensors, pass, ladj);
      py::gil_scoped_release unlocked;
      backward ? affine_bwd(s, a, threads) : affine_fwd(s, a, threads);
    };
  };
  m.def("affine_fwd", affine(false));
  m.def("affine_bwd", affine(true));
  m.def("lu_fwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                     const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, uintptr_t ladj, int threads) {
    const LuArgs a = lu_fwd_args(type, inverse, sizes, x, factors, y, ladj);
    check_permutation(a);
    py::gil_scoped_release unlocked;
    lu_fwd(a, threads);
  });
  m.def("lu_bwd",
        [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
           const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, const ChannelNumbers& grad_y,
           uintptr_t grad_ladj, const ChannelNumbers& grad_x, const std::array<uintptr_t, 5>& grads, int threads) {
          const LuArgs a = lu_bwd_args(type, inverse, sizes, x, factors, y, grad_y, grad_ladj, grad_x, grads);
          check_permutation(a);
          py::gil_scoped_release unlocked;
          lu_bwd(a, threads);
        });
  m.def("actnorm_fwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                          uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& y, uintptr_t ladj, int threads) {
    const ActNormArgs a = actnorm_fwd_args(type, inverse, sizes, x, log_scale, shift, y, ladj);
    py::gil_scoped_release unlocked;
    actnorm_fwd(a, threads);
  });
  m.def("actnorm_bwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                          uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& grad_y, uintptr_t grad_ladj,
                          const ChannelNumbers& grad_x, const std::array<uintptr_t, 2>& grads, int threads) {
    const ActNormArgs a = actnorm_bwd_args(type, inverse, sizes, x, log_scale, shift, grad_y, grad_ladj, grad_x, grads);
    py::gil_scoped_release unlocked;
    actnorm_bwd(a, threads);
  });
  bind_net(m);
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

  py::class_<UnivariateMap>(m, "UnivariateMap")
      .def(py::init([](const AffineSpec& s) { return UnivariateMap{true, s, {}}; }))
      .def(py::init([](const RqsSpec& s) { return UnivariateMap{false, {}, s}; }));
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
  m.def("sweep_fwd", [](const NetLayers& net, const UnivariateMap& map, const View& z, const View& x, const View& ladj,
                        bool half_turn, bool zero_outside, const View& waves, int threads) {
    check_threads(threads);
    SweepArgs a = sweep_fwd_args(net, map, z, x, ladj, half_turn);
    sweep_fwd_more(a, waves, zero_outside);
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
