// From what torch says of the tensors to a call of the LU linear map, checked for what would corrupt memory: shared by
// the CPU's module and CUDA's.
#include <string>
#include <vector>

#include "lu_linear.h"

namespace fk {

// Only a GPU converts as it reads and writes.
static LuArgs inputs(bool gpu, int channel_dim, bool inverse, const View& x, const LuFactors& f, ChannelShape* shape) {
  const ChannelShape s = *shape = channel_shape("lu_linear: x", x, channel_dim);
  const DType wide = wide_type(x.type);
  if (!gpu) check_type("lu_linear: x", x, wide);
  checked_product("lu_linear: channels", {s.channels, s.channels, 64});
  check_contiguous_like("lu_linear: lower", f.lower, wide, &s.channels, 1, s.channels);
  check_contiguous_like("lu_linear: upper", f.upper, wide, &s.channels, 1, s.channels);
  check_contiguous_like("lu_linear: log_s", f.log_s, wide, &s.channels, 1);
  check_contiguous_like("lu_linear: sign_s", f.sign_s, wide, &s.channels, 1);
  check_contiguous_or_none("lu_linear: permutation", f.permutation, DType::i64, &s.channels, 1);
  check_contiguous_or_none("lu_linear: bias", f.bias, wide, &s.channels, 1);
  LuArgs a = {};
  a.type = x.type;
  a.inverse = inverse;
  a.images = s.images, a.pixels = s.pixels, a.channels = s.channels;
  a.ladj_count = s.ladj_count, a.ladj_pixels = s.ladj_pixels;
  a.lower = f.lower.data, a.upper = f.upper.data, a.log_s = f.log_s.data, a.sign_s = f.sign_s.data;
  a.bias = f.bias.data;
  a.permutation = static_cast<const int64_t*>(f.permutation.data);
  a.x = channels_of("lu_linear: x", x, x, s, x.type);
  return a;
}

LuArgs lu_fwd_args(bool gpu, int channel_dim, bool inverse, const View& x, const LuFactors& factors, const View& y,
                   const View& ladj) {
  ChannelShape s;
  LuArgs a = inputs(gpu, channel_dim, inverse, x, factors, &s);
  a.y = channels_of("lu_linear: y", y, x, s, x.type);
  check_writable("lu_linear: y", y);
  check_contiguous_like("lu_linear: ladj", ladj, wide_type(x.type), x.size, s.lead(x));
  a.ladj = ladj.data;
  return a;
}

LuArgs lu_bwd_args(bool gpu, int channel_dim, bool inverse, const View& x, const LuFactors& factors, const View& y,
                   const View& grad_y, const View& grad_ladj, const View& grad_x, const LuGrads& grads) {
  ChannelShape s;
  LuArgs a = inputs(gpu, channel_dim, inverse, x, factors, &s);
  const DType wide = wide_type(x.type);
  if (y.given()) a.y = channels_of("lu_linear: y", y, x, s, wide);
  a.grad_y = channels_of("lu_linear: grad_y", grad_y, x, s, x.type);
  if (grad_x.given()) {
    a.grad_x = channels_of("lu_linear: grad_x", grad_x, x, s, x.type);
    check_writable("lu_linear: grad_x", grad_x);
  }
  check_contiguous_or_none("lu_linear: grad_ladj", grad_ladj, wide, x.size, s.lead(x));
  check_contiguous_or_none("lu_linear: grad_lower", grads.lower, wide, &s.channels, 1, s.channels);
  check_contiguous_or_none("lu_linear: grad_upper", grads.upper, wide, &s.channels, 1, s.channels);
  check_contiguous_or_none("lu_linear: grad_log_s", grads.log_s, wide, &s.channels, 1);
  check_contiguous_or_none("lu_linear: grad_sign_s", grads.sign_s, wide, &s.channels, 1);
  check_contiguous_or_none("lu_linear: grad_bias", grads.bias, wide, &s.channels, 1);
  a.grad_ladj = grad_ladj.data;
  a.grad_lower = grads.lower.data, a.grad_upper = grads.upper.data, a.grad_log_s = grads.log_s.data;
  a.grad_sign_s = grads.sign_s.data, a.grad_bias = grads.bias.data;
  return a;
}

LuWork lu_work(const LuArgs& a, bool fuses, const View& sums, const View& h, const View& g_h, int64_t slices) {
  check_number("lu_linear: slices", slices, 1, 264);
  const bool wanted = a.grad_lower || a.grad_upper || a.grad_log_s || a.grad_sign_s || a.grad_bias;
  if (!wanted) return {nullptr, slices, nullptr, nullptr};
  const int64_t C = a.channels, of_sums[] = {slices, 2 * C * C + C + 1}, between[] = {C, a.count()};
  check_contiguous_like("lu_linear: sums", sums, DType::f64, of_sums, 2);
  if (a.inverse && !a.y.data)
    refuse("lu_linear: y", "given where gradients of an inverse's parameters are wanted", "None");
  if (!a.inverse || fuses) return {static_cast<double*>(sums.data), slices, nullptr, nullptr};
  if (!a.grad_x.data) refuse("lu_linear: grad_x", "given where sums are taken of it", "None");
  check_contiguous_like("lu_linear: h", h, wide_type(a.type), between, 2);
  check_contiguous_like("lu_linear: g_h", g_h, wide_type(a.type), between, 2);
  return {static_cast<double*>(sums.data), slices, h.data, g_h.data};
}

void check_permutation(const View& permutation) {
  check_storage("ops.lu_linear: permutation", permutation);
  check_type("ops.lu_linear: permutation", permutation, DType::i64);
  if (permutation.ndim != 1) refuse("ops.lu_linear: permutation", "[C]", sizes_of(permutation));
  const int64_t channels = permutation.size[0], *const at = static_cast<const int64_t*>(permutation.data);
  std::vector<bool> seen(size_t(channels), false);
  for (int64_t i = 0; i < channels; ++i) {
    const int64_t p = at[i * permutation.stride[0]];
    if (p < 0 || p >= channels || seen[size_t(p)])
      throw std::invalid_argument("ops.lu_linear: permutation must hold each of 0 to C-1 once, got " +
                                  std::to_string(p) + " at " + std::to_string(i));
    seen[size_t(p)] = true;
  }
}

}  // namespace fk
