// Launchers of the LU linear map on raw pointers. No torch, no Python.
#pragma once
#include "../common/channels.h"
#include "../common/tensor.h"

namespace fk {

// y = P L (U + diag(sign_s exp(log_s))) x + bias at every pixel, or its inverse. (P v)[i] = v[permutation[i]].
// Of every tensor of pixels the channel stride or the pixel stride is 1.
struct LuArgs {
  DType type;  // f32 or f64
  bool inverse;
  int64_t images, pixels, channels;
  const void *lower, *upper;  // [C, C], contiguous; only the strict triangles are read
  const void *log_s, *sign_s;
  const void* bias;            // null: none
  const int64_t* permutation;  // null: the identity
  Channels x, y;               // the call's input and output; bwd: y.data may be null, it is then computed again
  void* ladj;                  // [ladj_count], each of ladj_pixels pixels
  int64_t ladj_count, ladj_pixels;

  Channels grad_y, grad_x;  // bwd: gradients of the call's output and input; data may be null: zero, not wanted
  const void* grad_ladj;    // null: zero
  void *grad_lower, *grad_upper, *grad_log_s, *grad_sign_s, *grad_bias;  // null: not wanted

  int64_t count() const { return images * pixels; }
};

void lu_fwd(const LuArgs&, int threads);
void lu_bwd(const LuArgs&, int threads);

}  // namespace fk
