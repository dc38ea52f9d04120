// Launchers of monotone networks, on raw pointers. No torch, no Python.
#pragma once
#include <vector>

#include "../common/cuda_stream.h"
#include "../common/view.h"
#include "../net/net.h"

namespace fk {

// An increasing function of one number and a signal, by a small network of both. Integral: y = the integral from 0 to x
// of exp(soft_clip(u(t))), u the net, by Gauss-Legendre. Positive: y = u(x) itself, whose weights are such that it
// increases.
struct MonotoneSpec {
  static constexpr int kMaxNodes = 128;
  bool positive;
  Activation activation;
  int nodes;
  double node[kMaxNodes], weight[kMaxNodes];  // on [0, 1]
  double log_bound;                           // of log slopes, of the integral
  double bound;                               // the inverse looks for x from -bound to bound
  bool shift;                                 // the last number of the signal adds to y, and is all it does
  bool inverse;
};

constexpr int kMaxMonotoneLayers = 16;

struct MonotoneLayer {
  const void *weight, *bias;  // [sets, n_out, n_in], [sets, n_out], contiguous; the first layer's first column is x's
  int64_t n_in, n_out;
  void *grad_weight, *grad_bias;  // bwd; null: not wanted
};

// x, y, grad_y, grad_x, root: [rows, features]; signal, grad_signal: [rows, features, numbers]; ladj, grad_ladj:
// [rows].
struct MonotoneArgs {
  MonotoneSpec spec;
  DType type;  // f32 or f64
  int64_t rows, features, numbers;
  int64_t sets;  // of weights: 1, or one a feature
  int n;
  MonotoneLayer layers[kMaxMonotoneLayers];
  const void *x, *signal;
  void *y, *ladj;                  // fwd
  const void* root;                // bwd of an inverse: what fwd returned
  const void *grad_y, *grad_ladj;  // null: zero
  void *grad_x, *grad_signal;      // null: not wanted

  int64_t seen() const { return numbers - int64_t(spec.shift); }
};

MonotoneSpec monotone_spec(bool positive, int activation, const std::vector<double>& nodes,
                           const std::vector<double>& weights, double log_bound, double bound, bool shift,
                           bool inverse);
MonotoneArgs monotone_fwd_args(const MonotoneSpec&, const View& x, const View& signal, const std::vector<View>& layers,
                               const View& y, const View& ladj);
MonotoneArgs monotone_bwd_args(const MonotoneSpec&, const View& x, const View& signal, const std::vector<View>& layers,
                               const View& root, const View& grad_y, const View& grad_ladj, const View& grad_x,
                               const View& grad_signal, const std::vector<View>& grads);

void monotone_fwd(const MonotoneArgs&, int threads);
void monotone_bwd(const MonotoneArgs&, int threads);

// ---- on a GPU ----

constexpr int kMaxMonotoneGpuLayers = 8;  // more would not fit in what a launch hands over

// What a net takes there. widths: what enters each layer beside x, and 1.
struct MonotoneRoom {
  bool fits;             // forward and backward, in the shared memory of a block
  int64_t packed, sums;  // numbers of a set: of its weights as kernels read them, of the sums of their gradients
};
std::vector<int64_t> checked_widths(std::vector<int64_t> widths);
MonotoneRoom monotone_room(const MonotoneSpec&, const std::vector<int64_t>& widths, int type, int device);

// Gauss-Legendre of three points and of two, on [0, 1].
struct MonotoneRules {
  double node3[3] = {0.1127016653792583, 0.5, 0.8872983346207417}, weight3[3] = {5.0 / 18, 8.0 / 18, 5.0 / 18};
  double node2[2] = {0.21132486540518713, 0.7886751345948129}, weight2[2] = {0.5, 0.5};
};

struct MonotoneWork {
  void* packed;    // [sets, packed]
  void* terms;     // [features, rows], fwd: those of ladj
  double* sums;    // [sets, slices, sums], bwd; null: no gradients of weights
  int64_t slices;  // into which a set's elements are dealt out
  MonotoneRules rules;
};

// The same for both: what is there for a call, checked.
MonotoneWork monotone_fwd_work(const MonotoneArgs&, const View& packed, const View& terms, int device);
MonotoneWork monotone_bwd_work(const MonotoneArgs&, const View& packed, const View& sums, int64_t slices, int device);

void monotone_fwd(const MonotoneArgs&, const MonotoneWork&, const CudaStream&);
void monotone_bwd(const MonotoneArgs&, const MonotoneWork&, const CudaStream&);

}  // namespace fk
