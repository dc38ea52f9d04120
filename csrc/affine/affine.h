// Launchers of the affine map on raw pointers. No torch, no Python.
#pragma once
#include <array>

#include "../common/cuda_stream.h"
#include "../common/view.h"
#include "../univariate/asked.h"

namespace fk {

enum class AffineScale : int { exp = 0, softplus, sigmoid, tanh, additive, soft_clip, clip, reciprocal_sigmoid, atan };

// y = s x + t with s from the logit u: exp(u), softplus(u) + min_scale, sigmoid(u + 2) + min_scale,
// exp(clamp tanh(u / clamp)), 1, exp(u / (1 + |u / clamp|)), exp(u stopped at low and high) with the gradient of
// exp(u), 1 / sigmoid(u + 2), or exp(c atan(u / c)) with c = 2 clamp / pi.
struct AffineSpec {
  AffineScale scale;
  double min_scale, clamp;
  bool inverse;
  double low = 0, high = 0;
  bool shift_first = false;               // the order of parameters in one tensor
  int event_dims = 1;                     // last dims of x that ladj is summed over
  int64_t start = 0, stop = 0, step = 1;  // the part of the event's first dim that is mapped; stop 0: all of it

  int params() const { return scale == AffineScale::additive ? 1 : 2; }
  bool in_part() const { return stop > 0; }
  bool each_feature() const { return event_dims == 1 && !in_part(); }
};

// layout: event_dims, start, stop, step.
AffineSpec affine_spec(int scale, double min_scale, double clamp, bool inverse, double low, double high,
                       bool shift_first, const std::array<int64_t, 4>& layout);

void check_each_feature(const AffineSpec&);

// The tensors of a call, all of one logical shape [rows..., event...]. A forward pass has the first five; u is null for
// additive maps, mask and what a backward pass does not want may be.
struct AffineTensors {
  enum { x, u, t, mask, y, grad_x, grad_u, grad_t, count, grad_y = y };
};

// The loops over all elements, outermost first, with the strides of every tensor. The dims of the event come in the
// memory order of x, and neighbours that all tensors allow to be one loop are one.
struct AffineNest {
  static constexpr int kMaxDims = 64;  // torch's
  int ndim = 0;
  int64_t size[kMaxDims];
  int64_t stride[kMaxDims][AffineTensors::count];
};

// What passes a coupling layer by, where the rows it lies in are dense: bytes [0, begin) and [end, row) of each.
struct AffinePass {
  const char* from;  // null: zeros
  char* to;          // null: nothing passes, or somebody else has seen to it
  int64_t row, begin, end;
};

struct AffineArgs {
  AffineNest nest;
  int64_t rows = 1, event = 1;  // elements of the leading dims, of the mapped part of the event
  DType x_type, params_type;    // of x, y and their gradients; of u, t and theirs. The mask is bytes.
  void* data[AffineTensors::count];
  AffinePass pass = {};
  void* ladj;  // [rows], float (double where x is double); bwd: its gradient, null: zero

  bool empty() const { return rows == 0 || event == 0; }
};

// What is checked here is all that a kernel relies on. Where `passes`, the kernel writes what is not mapped as well,
// and else somebody has. shift, mask, gradients that are absent or not wanted: none.
AffineArgs affine_fwd_args(const AffineSpec&, bool passes, const View& x, const View& params, const View& shift,
                           const View& mask, const View& y, const View& ladj);
AffineArgs affine_bwd_args(const AffineSpec&, bool passes, const View& x, const View& params, const View& shift,
                           const View& mask, const View& grad_y, const View& grad_ladj, const View& grad_x,
                           const View& grad_params, const View& grad_shift);

void affine_fwd(const AffineSpec&, const AffineArgs&, int threads);
void affine_bwd(const AffineSpec&, const AffineArgs&, int threads);
void affine_fwd(const AffineSpec&, const AffineArgs&, const CudaStream&);
void affine_bwd(const AffineSpec&, const AffineArgs&, const CudaStream&);

}  // namespace fk
