// Launchers of residual blocks y = x + g(x) on raw pointers, and the gate in front of them. No torch, no Python.
#pragma once
#include <vector>

#include "../common/view.h"
#include "../net/net.h"

namespace fk {

// Between layers; of slopes of at most 1.
enum class Contraction : int { lipswish = 0, elu, tanh };

constexpr int64_t kMostResidualFeatures = 128;  // where a row's Jacobian is made, a matrix of so many

struct ResidualLayer {
  const void* weight;  // [n_out, n_in], rows weight_stride apart
  int64_t weight_stride;
  const void* bias;  // [n_out]
  int64_t n_in, n_out;
  void *grad_weight, *grad_bias;  // bwd, contiguous; null: not wanted
};

struct ResidualArgs {
  DType type;  // f32 or f64
  Contraction activation;
  bool preactivated;  // an activation in front of the first layer, too
  bool inverse;
  int64_t steps;  // of the inverse's iteration, at most
  double least;   // a row rests whose step is less, or a rounding
  int64_t rows, features;
  const ResidualLayer* layers;
  int n;
  const void* betas;  // [activations()], of a lipswish; null: 1
  void* grad_betas;   // bwd; null: not wanted
  const void* x;      // the call's input, [rows, features] with rows x_stride apart
  int64_t x_stride;
  void *y, *ladj;                  // [rows, features] and [rows]; bwd: y is what an inverse returned, else null
  const void *grad_y, *grad_ladj;  // bwd, contiguous; null: zero
  void* grad_x;                    // bwd, contiguous; null: not wanted
  // Of a determinant that is estimated; else null and 0.
  const void* weights;  // [terms]
  const void* noise;    // [draws, rows, features]
  void* inner;          // the same: sums of powers, fwd writes and bwd reads them; fwd, null: not wanted
  int64_t terms, draws;

  bool estimated() const { return draws > 0; }
  int64_t activations() const { return n - 1 + preactivated; }
  bool activated(int k) const { return k > 0 || preactivated; }      // in front of layer k
  int64_t beta_of(int k) const { return preactivated ? k : k - 1; }  // of that
  int64_t work() const {                                             // multiply-adds of g
    int64_t sum = 0;
    for (int k = 0; k < n; ++k) sum += layers[k].n_in * layers[k].n_out;
    return sum;
  }
};

// What a call is told beside its tensors.
struct ResidualSettings {
  int64_t activation;
  bool preactivated, inverse, estimated;
  int64_t steps;
  double least;
};

struct ResidualViews {
  View weight, bias, grad_weight, grad_bias;
};

// The layers of a call on so many rows. What kernels read has been checked against the tensors.
class ResidualLayers {
 public:
  ResidualLayers(int64_t rows, int64_t features, int64_t layers, const ResidualSettings&);
  ResidualLayers(const ResidualLayers&) = delete;  // args point into it

  void add(const ResidualViews&);
  void close(const View& betas, const View& grad_betas);                     // after the last layer
  void estimate(const View& weights, const View& noise, const View& inner);  // after that

  ResidualArgs args = {};

 private:
  std::vector<ResidualLayer> layers_;
};

ResidualArgs residual_fwd_args(const ResidualLayers&, const View& x, const View& y, const View& ladj);
ResidualArgs residual_bwd_args(const ResidualLayers&, const View& x, const View& y, const View& grad_y,
                               const View& grad_ladj, const View& grad_x);

void residual_fwd(const ResidualArgs&, int threads);
void residual_bwd(const ResidualArgs&, int threads);

}  // namespace fk
