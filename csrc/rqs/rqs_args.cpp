// From what Python lists to a call of the spline, checked for what would corrupt memory: shared by the CPU's module and
// CUDA's.
#include <stdexcept>

#include "rqs.h"

namespace fk {

RqsSpec rqs_spec(int bins, int tails, double left, double right, double bottom, double top, double min_width,
                 double min_height, double min_slope, double logit_scale, double clip_size, double clip_slope,
                 double edge_logit, bool inverse, double min_lambda) {
  if (bins < 1 || bins > 128 || tails < 0 || tails > 2) throw std::invalid_argument("RqsSpec: bins or tails");
  return {bins,      Tails(tails), left,      right,      bottom,     top,     min_width, min_height,
          min_slope, logit_scale,  clip_size, clip_slope, edge_logit, inverse, min_lambda};
}

RqsArgs rqs_args(bool backward, const std::vector<std::array<int64_t, 3>>& dims, int64_t features, int64_t x_stride,
                 int64_t params_stride, int x_type, int params_type, const std::array<uintptr_t, 8>& tensors) {
  if (dims.size() > Rows::kMaxDims) throw std::invalid_argument("at most 8 leading dims that cannot be merged");
  RqsArgs a = {};
  for (const auto& d : dims) {
    a.rows.size[a.rows.ndim] = d[0];
    a.rows.stride_a[a.rows.ndim] = d[1];
    a.rows.stride_b[a.rows.ndim++] = d[2];
  }
  a.features = features, a.x_stride = x_stride, a.params_stride = params_stride;
  a.x_type = DType(x_type), a.params_type = DType(params_type);
  const auto at = [&](int i) { return reinterpret_cast<void*>(tensors[size_t(i)]); };
  a.x = at(0), a.params = at(1), a.y = at(2), a.ladj = at(3);
  a.grad_y = at(4), a.grad_ladj = at(5), a.grad_x = at(6), a.grad_params = at(7);
  const bool complete = a.x && a.params && (backward ? a.grad_x && a.grad_params : a.y && a.ladj);
  if (!complete && !a.empty()) throw std::invalid_argument("rqs: null data pointer");
  return a;
}

}  // namespace fk
