// Every entry point of the CUDA module, on one screen: those of bindings.cpp, with a device and a stream in place of a
// number of threads. The types are this module's own, so that it lives beside the CPU's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "affine/affine.h"
#include "common/device.h"
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
}
