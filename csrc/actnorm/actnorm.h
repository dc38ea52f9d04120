// Launchers of actnorm on raw pointers. No torch, no Python.
#pragma once
#include "../common/channels.h"
#include "../common/cuda_stream.h"

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

// What is checked here is all that a kernel relies on. Gradients that are zero or not wanted: none.
ActNormArgs actnorm_fwd_args(int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                             const View& y, const View& ladj);
ActNormArgs actnorm_bwd_args(int channel_dim, bool inverse, const View& x, const View& log_scale, const View& shift,
                             const View& grad_y, const View& grad_ladj, const View& grad_x, const View& grad_log_scale,
                             const View& grad_shift);

void actnorm_fwd(const ActNormArgs&, int threads);
void actnorm_bwd(const ActNormArgs&, int threads);
void actnorm_fwd(const ActNormArgs&, const CudaStream&);
// `sums`: [slices, 2 C + 1] doubles to be overwritten, by which pixels and gradients of ladj are summed; null where no
// gradient of a parameter is wanted.
double* actnorm_sums(const ActNormArgs&, const View& sums, int64_t slices);
void actnorm_bwd(const ActNormArgs&, double* sums, int64_t slices, const CudaStream&);

}  // namespace fk
