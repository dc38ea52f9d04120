// From what Python lists to a call of the LU linear map, checked for what would corrupt memory: shared by the CPU's
// module and CUDA's.
#include <stdexcept>
#include <string>
#include <vector>

#include "lu_linear.h"

namespace fk {

static void* ptr(uintptr_t p) { return reinterpret_cast<void*>(p); }

static LuArgs common_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
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
  if (!a.x.data || !a.lower || !a.upper || !a.log_s || !a.sign_s)
    throw std::invalid_argument("lu_linear: null data pointer");
  return a;
}

LuArgs lu_fwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                   const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, uintptr_t ladj) {
  LuArgs a = common_args(type, inverse, sizes, x, factors);
  a.y = channels_of(y);
  a.ladj = ptr(ladj);
  if (!a.y.data || !a.ladj) throw std::invalid_argument("lu_linear: null data pointer");
  return a;
}

LuArgs lu_bwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                   const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, const ChannelNumbers& grad_y,
                   uintptr_t grad_ladj, const ChannelNumbers& grad_x, const std::array<uintptr_t, 5>& grads) {
  LuArgs a = common_args(type, inverse, sizes, x, factors);
  a.y = channels_of(y);
  a.grad_y = channels_of(grad_y);
  a.grad_ladj = ptr(grad_ladj);
  a.grad_x = channels_of(grad_x);
  a.grad_lower = ptr(grads[0]), a.grad_upper = ptr(grads[1]), a.grad_log_s = ptr(grads[2]);
  a.grad_sign_s = ptr(grads[3]), a.grad_bias = ptr(grads[4]);
  if (!a.grad_y.data) throw std::invalid_argument("lu_linear: null data pointer");
  return a;
}

void check_permutation(const LuArgs& a) {
  if (!a.permutation) return;
  std::vector<bool> seen(size_t(a.channels), false);
  for (int64_t i = 0; i < a.channels; ++i) {
    const int64_t p = a.permutation[i];
    if (p < 0 || p >= a.channels || seen[size_t(p)])
      throw std::invalid_argument("ops.lu_linear: permutation must hold each of 0 to C-1 once, got " +
                                  std::to_string(p) + " at " + std::to_string(i));
    seen[size_t(p)] = true;
  }
}

}  // namespace fk
