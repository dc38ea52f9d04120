// Launchers of the affine map on raw pointers. No torch, no Python.
#pragma once
#include <vector>

#include "../common/tensor.h"

namespace fk {

enum class AffineScale : int { exp = 0, softplus, sigmoid, tanh, additive, soft_clip, clip };

// y = s x + t with s from the logit u: exp(u), softplus(u) + min_scale, sigmoid(u + 2) + min_scale,
// exp(clamp tanh(u / clamp)), 1, exp(u / (1 + |u / clamp|)), or exp(u stopped at low and high) with the gradient of
// exp(u).
struct AffineSpec {
  AffineScale scale;
  double min_scale, clamp;
  bool inverse;
  double low = 0, high = 0;
  bool shift_first = false;  // the order of a layer's parameters; AffineTensors says by itself where each lies

  int params() const { return scale == AffineScale::additive ? 1 : 2; }
};

// The tensors of a call, all of one logical shape [rows..., event...]. A forward pass has the first five; u is null for
// additive maps, mask and what a backward pass does not want may be.
struct AffineTensors {
  enum { x, u, t, mask, y, grad_x, grad_u, grad_t, count, grad_y = y };
};

// One tensor as its owner describes it; strides in elements, one per dim.
struct StridedTensor {
  void* data;
  std::vector<int64_t> stride;
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
  int64_t rows = 1, event = 1;  // elements of the leading dims, of the event
  DType x_type, params_type;    // of x, y and their gradients; of u, t and theirs. The mask is bytes.
  void* data[AffineTensors::count];
  AffinePass pass = {};
  void* ladj;  // [rows], float (double where x is double); bwd: its gradient, null: zero

  AffineArgs(const std::vector<int64_t>& sizes, int event_dims, const std::vector<StridedTensor>& tensors);
};

void affine_fwd(const AffineSpec&, const AffineArgs&, int threads);
void affine_bwd(const AffineSpec&, const AffineArgs&, int threads);

}  // namespace fk
