// From what torch says of the tensors to a call of the spline, checked for what would corrupt memory: shared by the
// CPU's module and CUDA's.
#include <math.h>

#include "../common/view_like.h"
#include "rqs.h"

namespace fk {

RqsSpec rqs_spec(int bins, int tails, double left, double right, double bottom, double top, double min_width,
                 double min_height, double min_slope, double logit_scale, double clip_size, double clip_slope,
                 double edge_logit, bool inverse, double min_lambda) {
  check_number("RqsSpec: bins", bins, 1, 128);
  check_number("RqsSpec: tails", tails, 0, 2);
  return {bins,      Tails(tails), left,      right,      bottom,     top,     min_width, min_height,
          min_slope, logit_scale,  clip_size, clip_slope, edge_logit, inverse, min_lambda};
}

void check_box(const RqsSpec& s, bool wide) {
  // Smallest and largest numbers that leave room for products of two; kLeast of rqs_bin.h.
  const double tiny = wide ? 0x1p-1010 : 0x1p-120, huge = wide ? 0x1p1010 : 0x1p120;
  const double steep = wide ? 0x1p505 : 0x1p60, least = wide ? 1e-24 : 1e-12;
  const double width = s.right - s.left, height = s.top - s.bottom;
  const double thin = width * fmax(s.min_width, least), flat = height * fmax(s.min_height, least);
  const double across = fmax(fabs(s.left), fabs(s.right)), up = fmax(fabs(s.bottom), fabs(s.top));
  const double corner = fmax(across, up);
  const bool ordered = wide || (width > 0x1p-23 * across && height > 0x1p-23 * up);
  if (ordered && corner <= huge && width <= huge && height <= huge && thin >= tiny && flat >= tiny &&
      height <= steep * thin && width <= steep * flat)
    return;
  const auto text = [](double v) { return std::to_string(v); };
  refuse("rqs: box", std::string("one whose bins and their slopes are numbers of ") + (wide ? "float64" : "float32"),
         "(" + text(s.left) + ", " + text(s.right) + ", " + text(s.bottom) + ", " + text(s.top) + ")");
}

void check_numbers(const RqsSpec& s, DType type) { check_box(s, type == DType::f64); }

void check_on_gpu(const RqsSpec& s) {
  if (s.min_lambda != 0) refuse("sweep: the map", "without splits on a GPU", "a linear spline");
}

bool box_of(const RqsSpec& s, MapBox* box) {
  *box = {s.left, s.right, s.bottom, s.top};
  return true;
}

// The leading dims of x and params, merged where both tensors allow it.
static LeadingDims leading_dims_of(const View& x, const View& params) {
  LeadingDims r;
  for (int i = 0; i < x.ndim - 1; ++i) {
    const int64_t n = x.size[i], a = x.stride[i], b = params.stride[i];
    if (n == 1) continue;
    const int last = r.ndim - 1;
    const bool joins = last >= 0 && r.stride_a[last] == n * a && r.stride_b[last] == n * b;
    if (!joins && r.ndim == LeadingDims::kMaxDims)
      refuse("rqs: x", "of at most 8 leading dims that cannot be merged", "strides " + strides_of(x));
    const int at = joins ? last : r.ndim++;
    r.size[at] = joins ? r.size[at] * n : n;
    r.stride_a[at] = a, r.stride_b[at] = b;
  }
  return r;
}

static RqsArgs inputs(const RqsSpec& spec, const View& x, const View& params) {
  check_input("rqs: x", x);
  check_input("rqs: params", params);
  check_params_type("rqs: params", params, x.type);
  if (x.ndim < 1) refuse("rqs: x", "[..., D]", "a scalar");
  const int64_t P = spec.params();
  check_sizes_like("rqs: params", params, x.size, x.ndim, P);
  check_box(spec, x.type == DType::f64);
  if (params.stride[x.ndim] != 1) refuse("rqs: params", "dense in their last dim", "strides " + strides_of(params));
  RqsArgs a = {};
  a.rows = leading_dims_of(x, params);
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

RqsArgs rqs_fwd_args(const RqsSpec& spec, const View& x, const View& params, const View& y, const View& ladj) {
  RqsArgs a = inputs(spec, x, params);
  check_contiguous_like("rqs: y", y, x.type, x.size, x.ndim);
  check_contiguous_like("rqs: ladj", ladj, wide_type(x.type), x.size, x.ndim - 1);
  a.y = y.data, a.ladj = ladj.data;
  return a;
}

RqsArgs rqs_bwd_args(const RqsSpec& spec, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
                     const View& grad_x, const View& grad_params) {
  RqsArgs a = inputs(spec, x, params);
  check_contiguous_or_none("rqs: grad_y", grad_y, x.type, x.size, x.ndim);
  check_contiguous_or_none("rqs: grad_ladj", grad_ladj, wide_type(x.type), x.size, x.ndim - 1);
  check_contiguous_like("rqs: grad_x", grad_x, x.type, x.size, x.ndim);
  check_contiguous_like("rqs: grad_params", grad_params, params.type, params.size, params.ndim);
  a.grad_y = grad_y.data, a.grad_ladj = grad_ladj.data;
  a.grad_x = grad_x.data, a.grad_params = grad_params.data;
  return a;
}

}  // namespace fk
