// Launchers of monotone networks, on raw pointers. No torch, no Python.
#pragma once
#include <vector>

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

}  // namespace fk
