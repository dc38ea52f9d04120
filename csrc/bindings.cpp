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
#include "rqs/rqs.h"

namespace py = pybind11;
using namespace fk;

static void* ptr(uintptr_t p) { return reinterpret_cast<void*>(p); }

// (size, stride of a, stride of b) per leading dim, already collapsed.
static Rows rows_of(const std::vector<std::array<int64_t, 3>>& dims) {
  if (dims.size() > Rows::kMaxDims) throw std::invalid_argument("at most 8 leading dims that cannot be merged");
  Rows r;
  for (const auto& d : dims) {
    r.size[r.ndim] = d[0];
    r.stride_a[r.ndim] = d[1];
    r.stride_b[r.ndim++] = d[2];
  }
  return r;
}

// Asks for 2 MB pages behind a large fresh tensor before its first touch: a kernel that writes
// 48 MB of gradients otherwise spends most of its time in 12,000 page faults. Advice only.
static void advise_huge(uintptr_t p, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (p + kPage - 1) / kPage * kPage, end = (p + bytes) / kPage * kPage;
  if (begin < end) madvise(ptr(begin), end - begin, MADV_HUGEPAGE);
#endif
}

static void require(const RqsArgs& a, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (!p && a.rows.count() * a.features > 0) throw std::invalid_argument("rqs: null data pointer");
}

// A layer as Python lists it: weight, its row stride, bias, n_in, n_out, in_order, out_order, limit, add, its row
// stride, gate, its row stride, kept input, gradients of weight, bias, add, gate.
using LayerNumbers = std::array<int64_t, 17>;

// A network as Python lists it: layers, residual, activation between layers and after the last.
struct PyNet {
  std::vector<MaskedLayer> layers;
  NetSpec spec;

  PyNet(const std::vector<LayerNumbers>& numbers, bool residual, int activation, int last) {
    if (numbers.empty() || numbers.size() > kMaxLayers) throw std::invalid_argument("a net has 1 to 64 layers");
    if (residual && numbers.size() % 2) throw std::invalid_argument("a residual net has an even number of layers");
    const auto at = [](int64_t p) { return ptr(uintptr_t(p)); };
    const auto ints = [&](int64_t p) { return static_cast<const int32_t*>(at(p)); };
    for (const auto& n : numbers) {
      if (!n[0] || n[3] < 1 || n[4] < 1) throw std::invalid_argument("net: null weight or empty layer");
      if (!layers.empty() && layers.back().n_out != n[3]) throw std::invalid_argument("net: layers do not fit");
      layers.push_back({at(n[0]), n[1], at(n[2]), n[3], n[4], ints(n[5]), ints(n[6]), ints(n[7]), at(n[8]), n[9],
                        at(n[10]), n[11], at(n[12]), at(n[13]), at(n[14]), at(n[15]), at(n[16])});
    }
    spec = {layers.data(), int(layers.size()), residual, Activation(activation), Activation(last)};
  }
};

static void require_rows(int64_t rows, std::initializer_list<uintptr_t> pointers) {
  if (rows < 1) throw std::invalid_argument("rows must be at least 1");  // tiles divide by their number
  for (uintptr_t p : pointers)
    if (!p) throw std::invalid_argument("null data pointer");
}

static void require_sweep(const PyNet& net, const UnivariateMap& map, int64_t features) {
  if (net.layers[0].n_in != features || net.spec.n_out() != features * map.params())
    throw std::invalid_argument("sweep: the net does not fit");
}

// A tensor on channels as Python lists it: pointer, strides of image, channel and pixel.
using ChannelNumbers = std::array<int64_t, 4>;

static Channels channels_of(const ChannelNumbers& n) { return {ptr(uintptr_t(n[0])), n[1], n[2], n[3]}; }

// A call of lu_linear without its outputs. sizes: images, pixels, channels, entries of ladj, pixels of each. factors:
// lower, upper, log_s, sign_s, bias, permutation.
static LuArgs lu_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                      const std::array<uintptr_t, 6>& factors) {
  LuArgs a = {};
  a.type = DType(type);
  a.inverse = inverse;
  a.images = sizes[0], a.pixels = sizes[1], a.channels = sizes[2];
  a.ladj_count = sizes[3], a.ladj_pixels = sizes[4];
  a.lower = ptr(factors[0]), a.upper = ptr(factors[1]), a.log_s = ptr(factors[2]), a.sign_s = ptr(factors[3]);
  a.bias = ptr(factors[4]);
  a.permutation = static_cast<const int64_t*>(ptr(factors[5]));
  a.x = channels_of(x);
  if (a.images < 1 || a.pixels < 1 || a.channels < 1) throw std::invalid_argument("lu_linear: empty tensor");
  if (!a.x.data || !a.lower || !a.upper || !a.log_s || !a.sign_s) throw std::invalid_argument("null data pointer");
  if (a.permutation) {  // it is written through
    std::vector<bool> seen(size_t(a.channels), false);
    for (int64_t i = 0; i < a.channels; ++i) {
      const int64_t p = a.permutation[i];
      if (p < 0 || p >= a.channels || seen[size_t(p)])
        throw std::invalid_argument("ops.lu_linear: permutation must hold each of 0 to C-1 once, got " +
                                    std::to_string(p) + " at " + std::to_string(i));
      seen[size_t(p)] = true;
    }
  }
  return a;
}

static ActNormArgs actnorm_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                                uintptr_t log_scale, uintptr_t shift) {
  ActNormArgs a = {};
  a.type = DType(type);
  a.inverse = inverse;
  a.images = sizes[0], a.pixels = sizes[1], a.channels = sizes[2];
  a.ladj_count = sizes[3], a.ladj_pixels = sizes[4];
  a.x = channels_of(x);
  a.log_scale = ptr(log_scale), a.shift = ptr(shift);
  if (a.images < 1 || a.pixels < 1 || a.channels < 1) throw std::invalid_argument("actnorm: empty tensor");
  if (!a.x.data || !a.log_scale || !a.shift) throw std::invalid_argument("null data pointer");
  return a;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "flowkernels CPU kernels; use flowkernels.ops";
  m.attr("compiler") = FK_COMPILER;
  m.def("isa", [] { return std::string(isa_name(isa())); });
  m.def("isas", &isas);
  m.def("use_isa", &use_isa);
  m.def("advise_huge", &advise_huge);

  py::class_<RqsSpec>(m, "RqsSpec")
      .def(py::init([](int bins, int tails, double left, double right, double bottom, double top, double min_width,
                       double min_height, double min_slope, double logit_scale, double clip_size, double clip_slope,
                       double edge_logit, bool inverse) {
        if (bins < 1 || bins > 128 || tails < 0 || tails > 2) throw std::invalid_argument("RqsSpec: bins or tails");
        return RqsSpec{bins,       Tails(tails), left,        right,     bottom,     top,        min_width,
                       min_height, min_slope,    logit_scale, clip_size, clip_slope, edge_logit, inverse};
      }));
  m.def("rqs_fwd", [](const RqsSpec& s, const std::vector<std::array<int64_t, 3>>& dims, int64_t features,
                      int64_t x_stride, int64_t params_stride, int x_type, int params_type, uintptr_t x,
                      uintptr_t params, uintptr_t y, uintptr_t ladj, int threads) {
    const RqsArgs a = {rows_of(dims), features,    x_stride, params_stride, DType(x_type), DType(params_type),
                       ptr(x),        ptr(params), ptr(y),   ptr(ladj),     nullptr,       nullptr,
                       nullptr,       nullptr};
    require(a, {a.x, a.params, a.y, a.ladj});
    py::gil_scoped_release unlocked;
    rqs_fwd(s, a, threads);
  });
  m.def("rqs_bwd",
        [](const RqsSpec& s, const std::vector<std::array<int64_t, 3>>& dims, int64_t features, int64_t x_stride,
           int64_t params_stride, int x_type, int params_type, uintptr_t x, uintptr_t params, uintptr_t grad_y,
           uintptr_t grad_ladj, uintptr_t grad_x, uintptr_t grad_params, int threads) {
          const RqsArgs a = {rows_of(dims),      features,       x_stride,    params_stride,   DType(x_type),
                             DType(params_type), ptr(x),         ptr(params), nullptr,         nullptr,
                             ptr(grad_y),        ptr(grad_ladj), ptr(grad_x), ptr(grad_params)};
          require(a, {a.x, a.params, a.grad_x, a.grad_params});
          py::gil_scoped_release unlocked;
          rqs_bwd(s, a, threads);
        });
  const auto affine_spec = [](int scale, double min_scale, double clamp, bool inverse, double low, double high,
                              bool shift_first) {
    if (scale < 0 || scale > 6) throw std::invalid_argument("AffineSpec: scale");
    return AffineSpec{AffineScale(scale), min_scale, clamp, inverse, low, high, shift_first};
  };
  py::class_<AffineSpec>(m, "AffineSpec").def(py::init(affine_spec));
  // Tensors as (pointer, strides), in the order of AffineTensors; pass: AffinePass, in its order.
  const auto affine = [](bool backward) {
    return [backward](const AffineSpec& s, const std::vector<int64_t>& sizes, int event_dims, int x_type,
                      int params_type, const std::vector<std::pair<uintptr_t, std::vector<int64_t>>>& tensors,
                      const std::array<uintptr_t, 5>& pass, uintptr_t ladj, int threads) {
      std::vector<StridedTensor> given;
      for (const auto& t : tensors) given.push_back({ptr(t.first), t.second});
      AffineArgs a(sizes, event_dims, given);
      a.x_type = DType(x_type);
      a.params_type = DType(params_type);
      a.pass = {static_cast<const char*>(ptr(pass[0])), static_cast<char*>(ptr(pass[1])), int64_t(pass[2]),
                int64_t(pass[3]), int64_t(pass[4])};
      if (a.pass.to && !(0 <= a.pass.begin && a.pass.begin <= a.pass.end && a.pass.end <= a.pass.row))
        throw std::invalid_argument("affine: pass");
      a.ladj = ptr(ladj);
      using A = AffineTensors;
      const bool unread = s.scale == AffineScale::additive;
      if (!a.data[A::x] || !a.data[A::t] || !(a.data[A::u] || unread) || !(backward || (a.data[A::y] && ladj)))
        throw std::invalid_argument("affine: null data pointer");
      py::gil_scoped_release unlocked;
      backward ? affine_bwd(s, a, threads) : affine_fwd(s, a, threads);
    };
  };
  m.def("affine_fwd", affine(false));
  m.def("affine_bwd", affine(true));
  m.def("lu_fwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                     const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, uintptr_t ladj, int threads) {
    LuArgs a = lu_args(type, inverse, sizes, x, factors);
    a.y = channels_of(y);
    a.ladj = ptr(ladj);
    if (!a.y.data || !a.ladj) throw std::invalid_argument("null data pointer");
    py::gil_scoped_release unlocked;
    lu_fwd(a, threads);
  });
  m.def("lu_bwd",
        [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
           const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, const ChannelNumbers& grad_y,
           uintptr_t grad_ladj, const ChannelNumbers& grad_x, const std::array<uintptr_t, 5>& grads, int threads) {
          LuArgs a = lu_args(type, inverse, sizes, x, factors);
          a.y = channels_of(y);
          a.grad_y = channels_of(grad_y);
          a.grad_ladj = ptr(grad_ladj);
          a.grad_x = channels_of(grad_x);
          a.grad_lower = ptr(grads[0]), a.grad_upper = ptr(grads[1]), a.grad_log_s = ptr(grads[2]);
          a.grad_sign_s = ptr(grads[3]), a.grad_bias = ptr(grads[4]);
          if (!a.grad_y.data) throw std::invalid_argument("null data pointer");
          py::gil_scoped_release unlocked;
          lu_bwd(a, threads);
        });
  m.def("actnorm_fwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                          uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& y, uintptr_t ladj, int threads) {
    ActNormArgs a = actnorm_args(type, inverse, sizes, x, log_scale, shift);
    a.y = channels_of(y);
    a.ladj = ptr(ladj);
    if (!a.y.data || !a.ladj) throw std::invalid_argument("null data pointer");
    py::gil_scoped_release unlocked;
    actnorm_fwd(a, threads);
  });
  m.def("actnorm_bwd", [](int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                          uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& grad_y, uintptr_t grad_ladj,
                          const ChannelNumbers& grad_x, uintptr_t grad_log_scale, uintptr_t grad_shift, int threads) {
    ActNormArgs a = actnorm_args(type, inverse, sizes, x, log_scale, shift);
    a.grad_y = channels_of(grad_y);
    a.grad_ladj = ptr(grad_ladj);
    a.grad_x = channels_of(grad_x);
    a.grad_log_scale = ptr(grad_log_scale), a.grad_shift = ptr(grad_shift);
    if (!a.grad_y.data) throw std::invalid_argument("null data pointer");
    py::gil_scoped_release unlocked;
    actnorm_bwd(a, threads);
  });
  py::class_<PyNet>(m, "Net").def(py::init<const std::vector<LayerNumbers>&, bool, int, int>());
  m.def("net_fwd",
        [](const PyNet& net, int type, int64_t rows, uintptr_t x, int64_t x_stride, uintptr_t y, int threads) {
          require_rows(rows, {x, y});
          py::gil_scoped_release unlocked;
          net_fwd({net.spec, DType(type), rows, ptr(x), x_stride, ptr(y), nullptr, nullptr}, threads);
        });
  m.def("net_bwd", [](const PyNet& net, int type, int64_t rows, uintptr_t x, int64_t x_stride, uintptr_t y,
                      uintptr_t grad_y, uintptr_t grad_x, int threads) {
    require_rows(rows, {x, grad_y});
    py::gil_scoped_release unlocked;
    net_bwd({net.spec, DType(type), rows, ptr(x), x_stride, ptr(y), ptr(grad_y), ptr(grad_x)}, threads);
  });

  py::class_<UnivariateMap>(m, "UnivariateMap")
      .def(py::init([](const AffineSpec& s) { return UnivariateMap{true, s, {}}; }))
      .def(py::init([](const RqsSpec& s) { return UnivariateMap{false, {}, s}; }));
  const auto flow_layer = [](bool backward) {
    return [backward](const PyNet& net, const UnivariateMap& map, int type, int64_t rows, int64_t features, uintptr_t x,
                      int64_t x_stride, uintptr_t in_columns, uintptr_t columns, int64_t n_columns, uintptr_t y,
                      uintptr_t ladj, uintptr_t grad_x, int threads) {
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
  m.def("sweep_fwd", [](const PyNet& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                        uintptr_t z, int64_t z_stride, uintptr_t x, uintptr_t ladj, int threads) {
    require_sweep(net, map, features);
    require_rows(rows, {z, x, ladj});
    const SweepArgs a = {net.spec, map,    DType(type), rows,    features, ptr(z),
                         z_stride, ptr(x), ptr(ladj),   nullptr, nullptr,  nullptr};
    py::gil_scoped_release unlocked;
    sweep_fwd(a, threads);
  });
  m.def("sweep_bwd",
        [](const PyNet& net, const UnivariateMap& map, int type, int64_t rows, int64_t features, uintptr_t z,
           int64_t z_stride, uintptr_t x, uintptr_t grad_x, uintptr_t grad_ladj, uintptr_t grad_z, int threads) {
          require_sweep(net, map, features);
          require_rows(rows, {z, x});
          const SweepArgs a = {net.spec, map,    DType(type), rows,        features,       ptr(z),
                               z_stride, ptr(x), nullptr,     ptr(grad_x), ptr(grad_ladj), ptr(grad_z)};
          py::gil_scoped_release unlocked;
          sweep_bwd(a, threads);
        });
}
