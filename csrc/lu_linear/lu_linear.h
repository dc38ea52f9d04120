// Launchers of the LU linear map on raw pointers. No torch, no Python.
#pragma once
#include "../common/channels.h"
#include "../common/cuda_stream.h"

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

// Parameters, and their gradients; bias and permutation, or what is not wanted: none.
struct LuFactors {
  const View &lower, &upper, &log_s, &sign_s, &permutation, &bias;
};
struct LuGrads {
  const View &lower, &upper, &log_s, &sign_s, &bias;
};

// What is checked here is all that a kernel relies on, but the permutation's values.
LuArgs lu_fwd_args(bool gpu, int channel_dim, bool inverse, const View& x, const LuFactors&, const View& y,
                   const View& ladj);
LuArgs lu_bwd_args(bool gpu, int channel_dim, bool inverse, const View& x, const LuFactors&, const View& y,
                   const View& grad_y, const View& grad_ladj, const View& grad_x, const LuGrads&);
void check_permutation(const View&);  // its values: one in the CPU's memory

void lu_fwd(const LuArgs&, int threads);
void lu_bwd(const LuArgs&, int threads);

// Memory that a backward pass on a GPU overwrites.
struct LuWork {
  double* sums;  // [slices][2 C^2 + C + 1]; null: no gradient of a parameter is wanted
  int64_t slices;
  void *h, *g_h;  // [C, images * pixels]; inverse only, where sums is given and not lu_fuses
};
LuWork lu_work(const LuArgs&, bool fuses, const View& sums, const View& h, const View& g_h, int64_t slices);

void lu_fwd(const LuArgs&, const CudaStream&);
void lu_bwd(const LuArgs&, const LuWork&, const CudaStream&);
bool lu_fits(int type, int64_t channels, int device);  // the matrix fits in a multiprocessor's shared memory
// Two launches do all of a backward pass with gradients of parameters; y, where one is needed, is then f32.
bool lu_fuses(int type, bool inverse, int64_t channels, int device);

}  // namespace fk
