// Launchers of the LU linear map on raw pointers. No torch, no Python.
#pragma once
#include "../common/channels.h"
#include "../common/cuda_stream.h"
#include "../common/tensor.h"

namespace fk {

// y = P L (U + diag(sign_s exp(log_s))) x + bias at every pixel, or its inverse. (P v)[i] = v[permutation[i]].
// Of every tensor of pixels the channel stride or the pixel stride is 1.
struct LuArgs {
  DType type;  // f32 or f64; on a GPU that of x and y (bwd: x, grad_y, grad_x), any, where lu_fuses or forward
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

// sizes: images, pixels, channels, entries of ladj, pixels of each. factors: lower, upper, log_s, sign_s, bias,
// permutation. grads: of the first four, and of bias.
LuArgs lu_fwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                   const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, uintptr_t ladj);
LuArgs lu_bwd_args(int type, bool inverse, const std::array<int64_t, 5>& sizes, const ChannelNumbers& x,
                   const std::array<uintptr_t, 6>& factors, const ChannelNumbers& y, const ChannelNumbers& grad_y,
                   uintptr_t grad_ladj, const ChannelNumbers& grad_x, const std::array<uintptr_t, 5>& grads);
void check_permutation(const LuArgs&);  // one in the CPU's memory: it is written through

void lu_fwd(const LuArgs&, int threads);
void lu_bwd(const LuArgs&, int threads);

// Memory that a backward pass on a GPU overwrites.
struct LuWork {
  double* sums;  // [slices][2 C^2 + C + 1]; null: no gradient of a parameter is wanted
  int64_t slices;
  void *h, *g_h;  // [C, images * pixels]; inverse only, where sums is given and not lu_fuses
};

void lu_fwd(const LuArgs&, const CudaStream&);
void lu_bwd(const LuArgs&, const LuWork&, const CudaStream&);
bool lu_fits(int type, int64_t channels, int device);  // the matrix fits in a multiprocessor's shared memory
// Two launches do all of a backward pass with gradients of parameters; y, where one is needed, is then f32.
bool lu_fuses(int type, bool inverse, int64_t channels, int device);

}  // namespace fk
