// Launchers of actnorm on raw pointers. No torch, no Python.
#pragma once
#include "../common/channels.h"
#include "../common/tensor.h"

namespace fk {

// y = x exp(log_scale) + shift per channel, or its inverse. All tensors of pixels lie alike: either their pixels are
// side by side, or their channels are, and then pixels are at even distances over all images.
struct ActNormArgs {
  DType type;  // of the tensors of pixels; parameters, ladj and their gradients are float, or double for double
  bool inverse;
  int64_t images, pixels, channels;
  const void *log_scale, *shift;  // [C]
  Channels x, y;                  // the call's input and output; bwd: y is unused
  void* ladj;                     // [ladj_count], each of ladj_pixels pixels
  int64_t ladj_count, ladj_pixels;

  Channels grad_y, grad_x;            // bwd; grad_x.data null: not wanted
  const void* grad_ladj;              // null: zero
  void *grad_log_scale, *grad_shift;  // null: not wanted

  bool by_rows() const { return x.channel == 1; }
};

void actnorm_fwd(const ActNormArgs&, int threads);
void actnorm_bwd(const ActNormArgs&, int threads);

}  // namespace fk
