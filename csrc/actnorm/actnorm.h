// Launchers of actnorm on raw pointers. No torch, no Python.
#pragma once
#include "../common/channels.h"
#include "../common/cuda_stream.h"
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

// sizes: images, pixels, channels, entries of ladj, pixels of each; grads: of log_scale and shift.
ActNormArgs actnorm_fwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                             uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& y, uintptr_t ladj);
ActNormArgs actnorm_bwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                             uintptr_t log_scale, uintptr_t shift, const ChannelNumbers& grad_y, uintptr_t grad_ladj,
                             const ChannelNumbers& grad_x, const std::array<uintptr_t, 2>& grads);

void actnorm_fwd(const ActNormArgs&, int threads);
void actnorm_bwd(const ActNormArgs&, int threads);
void actnorm_fwd(const ActNormArgs&, const CudaStream&);
// `sums`: [slices][2 C + 1] doubles to be overwritten, by which pixels and gradients of ladj are summed; null: no
// gradient of a parameter is wanted.
void actnorm_bwd(const ActNormArgs&, double* sums, int64_t slices, const CudaStream&);

}  // namespace fk
