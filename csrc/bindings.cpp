// Every entry point of the compiled module, on one screen: pointers, sizes and strides in,
// nothing out. Shapes and types are checked in Python (flowkernels/ops/<op>); what is checked
// here is what would corrupt memory. The GIL is released inside kernels.
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
#include "masked_linear/net_args.h"
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

static void require_rows(int64_t rows, std::initializer_list<uintptr_t> pointers) {
  if (rows < 1) throw std::invalid_argument("rows must be at least 1");  // tiles divide by their number
  for (uintptr_t p : pointers)
    if (!p) throw std::invalid_argument("null data pointer");
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
  py::class_<NetLayers>(m, "Net").def(py::init<const std::vector<LayerNumbers>&, bool, int, int>());
  m.def("net_fwd",
        [](const NetLayers& net, int type, int64_t rows, uintptr_t x, int64_t x_stride, uintptr_t y, int threads) {
          require_rows(rows, {x, y});
          py::gil_scoped_release unlocked;
          net_fwd({net.spec, DType(type), rows, ptr(x), x_stride, ptr(y), nullptr, nullptr}, threads);
        });
  m.def("net_bwd", [](const NetLayers& net, int type, int64_t rows, uintptr_t x, int64_t x_stride, uintptr_t y,
                      uintptr_t grad_y, uintptr_t grad_x, int threads) {
    require_rows(rows, {x, grad_y});
    py::gil_scoped_release unlocked;
    net_bwd({net.spec, DType(type), rows, ptr(x), x_stride, ptr(y), ptr(grad_y), ptr(grad_x)}, threads);
  });

  py::class_<UnivariateMap>(m, "UnivariateMap")
      .def(py::init([](const AffineSpec& s) { return UnivariateMap{true, s, {}}; }))
      .def(py::init([](const RqsSpec& s) { return UnivariateMap{false, {}, s}; }));
  const auto flow_layer = [](bool backward) {
    return [backward](const NetLayers& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                      uintptr_t x, int64_t x_stride, uintptr_t in_columns, uintptr_t columns, int64_t n_columns,
                      uintptr_t y, uintptr_t ladj, uintptr_t grad_x, int threads) {
      if (net.spec.n_out() != n_columns * map.params()) throw std::invalid_argument("flow_layer: the net does not fit");
      require_rows(rows, {x, in_columns, columns});
      if (!backward) require_rows(rows, {y, ladj});
      FlowLayerArgs a = {};
      a.net = net.spec;
      a.map = map;
      a.type = DType(type);
      a.rows = rows;
      a.features = features;
      a.x = ptr(x);
      a.x_stride = x_stride;
      a.in_columns = static_cast<const int32_t*>(ptr(in_columns));
      a.columns = static_cast<const int32_t*>(ptr(columns));
      a.n_columns = n_columns;
      if (backward) {
        a.grad_y = ptr(y);
        a.grad_ladj = ptr(ladj);
      } else {
        a.y = ptr(y);
        a.ladj = ptr(ladj);
      }
      a.grad_x = ptr(grad_x);
      py::gil_scoped_release unlocked;
      backward ? flow_layer_bwd(a, threads) : flow_layer_fwd(a, threads);
    };
  };
  m.def("flow_layer_fwd", flow_layer(false));
  m.def("flow_layer_bwd", flow_layer(true));
  m.def("sweep_fwd", [](const NetLayers& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                        uintptr_t z, int64_t z_stride, uintptr_t x, uintptr_t ladj, bool half_turn, bool zero_outside,
                        uintptr_t waves, int threads) {
    SweepArgs a = sweep_args(net.spec, map, type, rows, features, z, z_stride, x);
    require_rows(rows, {ladj});
    a.ladj = ptr(ladj);
    if (half_turn) a.turn = half_turn_of(map);
    if (zero_outside && map.is_affine) throw std::invalid_argument("sweep: only a spline has a box");
    a.zero_outside = zero_outside;
    a.waves = ptr(waves);
    py::gil_scoped_release unlocked;
    sweep_fwd(a, threads);
  });
  m.def("sweep_bwd", [](const NetLayers& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                        uintptr_t z, int64_t z_stride, uintptr_t x, uintptr_t grad_x, uintptr_t grad_ladj,
                        uintptr_t grad_z, uintptr_t seen, uintptr_t slope, uintptr_t grad_seen, int threads) {
    SweepArgs a = sweep_args(net.spec, map, type, rows, features, z, z_stride, x);
    a.grad_x = ptr(grad_x), a.grad_ladj = ptr(grad_ladj), a.grad_z = ptr(grad_z);
    a.seen = ptr(seen), a.slope = ptr(slope), a.grad_seen = ptr(grad_seen);
    py::gil_scoped_release unlocked;
    sweep_bwd(a, threads);
  });
}
