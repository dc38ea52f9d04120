// From what torch says of the tensors to a call of actnorm, checked for what would corrupt memory: shared by the CPU's
// module and CUDA's.
#include "actnorm.h"

namespace fk {

static ActNormArgs inputs(int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                          ChannelShape* shape) {
  const ChannelShape s = *shape = channel_shape("actnorm: x", x, channel_dim);
  const DType wide = wide_type(x.type);
  check_contiguous_like("actnorm: log_scale", log_scale, wide, &s.channels, 1);
  check_contiguous_like("actnorm: shift", shift, wide, &s.channels, 1);
  ActNormArgs a = {};
  a.type = x.type;
  a.inverse = inverse;
  a.images = s.images, a.pixels = s.pixels, a.channels = s.channels;
  a.ladj_count = s.ladj_count, a.ladj_pixels = s.ladj_pixels;
  a.x = channels_of("actnorm: x", x, x, s, x.type);
  a.log_scale = log_scale.data, a.shift = shift.data;
  return a;
}

// All tensors of pixels are walked as x is: by planes, or by rows at even distances over all images.
static Channels like_x(const char* name, const View& t, const View& x, const ChannelShape& s, const ActNormArgs& a) {
  const Channels c = channels_of(name, t, x, s, x.type);
  const bool rows = c.channel == 1;
  if (rows != a.by_rows()) refuse(name, "walked as x is, by rows or by planes", "strides " + strides_of(t));
  if (rows && s.images > 1 && c.image != s.pixels * c.pixel)
    refuse(name, "of pixels at even distances over all images", "strides " + strides_of(t));
  if (!rows && c.pixel != 1) refuse(name, "of pixels side by side", "strides " + strides_of(t));
  return c;
}

ActNormArgs actnorm_fwd_args(int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                             const View& y, const View& ladj) {
  ChannelShape s;
  ActNormArgs a = inputs(channel_dim, inverse, x, log_scale, shift, &s);
  a.x = like_x("actnorm: x", x, x, s, a);
  a.y = like_x("actnorm: y", y, x, s, a);
  check_writable("actnorm: y", y);
  check_contiguous_like("actnorm: ladj", ladj, wide_type(x.type), x.size, s.lead(x));
  a.ladj = ladj.data;
  return a;
}

ActNormArgs actnorm_bwd_args(int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                             const View& grad_y, const View& grad_ladj, const View& grad_x, const View& grad_log_scale,
                             const View& grad_shift) {
  ChannelShape s;
  ActNormArgs a = inputs(channel_dim, inverse, x, log_scale, shift, &s);
  const DType wide = wide_type(x.type);
  a.x = like_x("actnorm: x", x, x, s, a);
  a.grad_y = like_x("actnorm: grad_y", grad_y, x, s, a);
  if (grad_x.given()) {
    a.grad_x = like_x("actnorm: grad_x", grad_x, x, s, a);
    check_writable("actnorm: grad_x", grad_x);
  }
  check_contiguous_or_none("actnorm: grad_ladj", grad_ladj, wide, x.size, s.lead(x));
  check_contiguous_or_none("actnorm: grad_log_scale", grad_log_scale, wide, &s.channels, 1);
  check_contiguous_or_none("actnorm: grad_shift", grad_shift, wide, &s.channels, 1);
  a.grad_ladj = grad_ladj.data;
  a.grad_log_scale = grad_log_scale.data, a.grad_shift = grad_shift.data;
  return a;
}

double* actnorm_sums(const ActNormArgs& a, const View& sums, int64_t slices) {
  check_number("actnorm: slices", slices, 1, 512);
  checked_product("actnorm: channels and slices",
                  {a.channels, slices, int64_t(1) << 32});  // blocks are counted in 32 bits
  const bool wanted = a.grad_log_scale || a.grad_shift;
  if (wanted) check_given("actnorm: sums", sums);
  const int64_t sizes[] = {slices, 2 * a.channels + 1};
  check_contiguous_or_none("actnorm: sums", sums, DType::f64, sizes, 2);
  return wanted ? static_cast<double*>(sums.data) : nullptr;
}

}  // namespace fk
