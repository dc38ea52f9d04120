// Every entry point of the compiled module, on one screen: pointers, sizes and strides in,
// nothing out. Shapes and types are checked in Python (flowkernels/ops/<op>); what is checked
// here is what would corrupt memory. The GIL is released inside kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include "common/isa.h"
#include "common/parallel.h"
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
}
