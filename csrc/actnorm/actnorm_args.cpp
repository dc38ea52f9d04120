// From what Python lists to a call of actnorm, checked for what would corrupt memory: shared by the CPU's module and
// CUDA's.
#include <stdexcept>

#include "actnorm.h"

namespace fk {

static void* ptr(uintptr_t p) { return reinterpret_cast<void*>(p); }

static ActNormArgs common_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                               uintptr_t log_scale, uintptr_t shift) {
  ActNormArgs a = {};
  a.type = DType(type);
  a.inverse = inverse;
  a.images = sizes[0], a.pixels = sizes[1], a.channels = sizes[2];
  a.ladj_count = sizes[3], a.ladj_pixels = sizes[4];
  a.x = channels_of(x);
  a.log_scale = ptr(log_scale), a.shift = ptr(shift);
  if (a.images < 1 || a.pixels < 1 || a.channels < 1) throw std::invalid_argument("actnorm: empty tensor");
  if (!a.x.data || !a.log_scale || !a.shift) throw std::invalid_argument("actnorm: null data pointer");
  return a;
}

ActNormArgs actnorm_fwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                             uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& y, uintptr_t ladj) {
  ActNormArgs a = common_args(type, inverse, sizes, x, log_scale, shift);
  a.y = channels_of(y);
  a.ladj = ptr(ladj);
  if (!a.y.data || !a.ladj) throw std::invalid_argument("actnorm: null data pointer");
  return a;
}

ActNormArgs actnorm_bwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                             uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& grad_y, uintptr_t grad_ladj,
                             const ChannelNumbers& grad_x, const std::array<uintptr_t, 2>& grads) {
  ActNormArgs a = common_args(type, inverse, sizes, x, log_scale, shift);
  a.grad_y = channels_of(grad_y);
  a.grad_ladj = ptr(grad_ladj);
  a.grad_x = channels_of(grad_x);
  a.grad_log_scale = ptr(grads[0]), a.grad_shift = ptr(grads[1]);
  if (!a.grad_y.data) throw std::invalid_argument("actnorm: null data pointer");
  return a;
}

}  // namespace fk
