// From what torch says of the tensors to a call of the spline, checked for what would corrupt memory: shared by the
// CPU's module and CUDA's.
#include <math.h>

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

RqsArgs rqs_fwd_args(const RqsSpec& spec, const View& x, const View& params, const View& y, const View& ladj) {
  const RqsArgs a = map_fwd_args("rqs", spec.params(), x, params, y, ladj);
  check_numbers(spec, x.type);
  return a;
}

RqsArgs rqs_bwd_args(const RqsSpec& spec, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
                     const View& grad_x, const View& grad_params) {
  const RqsArgs a = map_bwd_args("rqs", spec.params(), x, params, grad_y, grad_ladj, grad_x, grad_params);
  check_numbers(spec, x.type);
  return a;
}

}  // namespace fk
