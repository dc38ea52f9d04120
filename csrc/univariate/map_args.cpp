// From what torch says of the tensors to a call of a map's op, checked for what would corrupt memory: shared by the
// CPU's module and CUDA's.
#include "map_args.h"

#include "../common/view_like.h"

namespace fk {

namespace {

// The leading dims of x and params, merged where both tensors allow it.
LeadingDims leading_dims_of(const std::string& op, const View& x, const View& params) {
  LeadingDims r;
  for (int i = 0; i < x.ndim - 1; ++i) {
    const int64_t n = x.size[i], a = x.stride[i], b = params.stride[i];
    if (n == 1) continue;
    const int last = r.ndim - 1;
    const bool joins = last >= 0 && r.stride_a[last] == n * a && r.stride_b[last] == n * b;
    if (!joins && r.ndim == LeadingDims::kMaxDims)
      refuse(op + ": x", "of at most 8 leading dims that cannot be merged", "strides " + strides_of(x));
    const int at = joins ? last : r.ndim++;
    r.size[at] = joins ? r.size[at] * n : n;
    r.stride_a[at] = a, r.stride_b[at] = b;
  }
  return r;
}

MapArgs inputs(const std::string& op, int64_t P, const View& x, const View& params) {
  check_input((op + ": x").c_str(), x);
  check_input((op + ": params").c_str(), params);
  check_params_type((op + ": params").c_str(), params, x.type);
  if (x.ndim < 1) refuse(op + ": x", "[..., D]", "a scalar");
  check_sizes_like((op + ": params").c_str(), params, x.size, x.ndim, P);
  if (params.stride[x.ndim] != 1 && P > 1)
    refuse(op + ": params", "dense in their last dim", "strides " + strides_of(params));
  MapArgs a = {};
  a.rows = leading_dims_of(op, x, params);
  a.features = x.size[x.ndim - 1];
  // Of a single feature, or row, the distance to the next counts for nothing: as if there were no gap.
  a.x_stride = a.features == 1 ? 1 : x.stride[x.ndim - 1];
  a.params_stride = a.features == 1 ? P : params.stride[x.ndim - 1];
  if (a.rows.ndim == 0) {
    a.rows.ndim = 1, a.rows.size[0] = 1;
    a.rows.stride_a[0] = a.features, a.rows.stride_b[0] = a.features * a.params_stride;
  }
  a.x_type = x.type, a.params_type = params.type;
  a.x = x.data, a.params = params.data;
  return a;
}

}  // namespace

MapArgs map_fwd_args(const std::string& op, int params_of_each, const View& x, const View& params, const View& y,
                     const View& ladj) {
  MapArgs a = inputs(op, params_of_each, x, params);
  check_contiguous_like((op + ": y").c_str(), y, x.type, x.size, x.ndim);
  check_contiguous_like((op + ": ladj").c_str(), ladj, wide_type(x.type), x.size, x.ndim - 1);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

MapArgs map_bwd_args(const std::string& op, int params_of_each, const View& x, const View& params, const View& grad_y,
                     const View& grad_ladj, const View& grad_x, const View& grad_params) {
  MapArgs a = inputs(op, params_of_each, x, params);
  check_contiguous_or_none((op + ": grad_y").c_str(), grad_y, x.type, x.size, x.ndim);
  check_contiguous_or_none((op + ": grad_ladj").c_str(), grad_ladj, wide_type(x.type), x.size, x.ndim - 1);
  check_contiguous_like((op + ": grad_x").c_str(), grad_x, x.type, x.size, x.ndim);
  check_contiguous_like((op + ": grad_params").c_str(), grad_params, params.type, params.size, params.ndim);
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data;
  a.grad_x = grad_x.data, a.grad_params = grad_params.data;
  return a;
}

}  // namespace fk
