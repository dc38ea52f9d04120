// Launchers of block autoregressive maps on raw pointers, and the gate in front of them. No torch, no Python.
#pragma once
#include <vector>

#include "../common/view.h"
#include "../net/net.h"

namespace fk {

// Between layers; each increases.
enum class Increasing : int { tanh = 0, sigmoid, elu, leaky_relu };
// y of the network's f: f, x + f, or s x + (1 - s) f with s the sigmoid of a gate.
enum class BlockResidual : int { none = 0, sum, gated };

// A layer of features * before units to features * after. Blocks of its weights: free below the diagonal, logarithms on
// it, above it never read. With log_norm each row is then scaled, to the length of that logarithm.
struct BlockLayer {
  const void* weight;  // [features * after, features * before], rows weight_stride apart
  int64_t weight_stride;
  const void* bias;      // [features * after]
  const void* log_norm;  // [features * after] or null
  int64_t before, after;
  void *grad_weight, *grad_bias, *grad_log_norm;  // bwd, contiguous; null: not wanted; the last beside the first alone
};

struct BlockArgs {
  DType type;  // f32 or f64
  Increasing activation;
  BlockResidual residual;
  bool inverse;
  double eps;  // what Pyro adds: to norms, to their squares in logarithms, and there to the gate's shares
  int64_t rows, features;
  const BlockLayer* layers;
  int n;
  const void* gate;  // one number; null: none
  void* grad_gate;   // bwd; null: not wanted
  const void* x;     // the call's input, [rows, features] with rows x_stride apart
  int64_t x_stride;
  void *y, *ladj;                  // [rows, features] and [rows]; bwd: y is what an inverse returned, else null
  const void *grad_y, *grad_ladj;  // bwd, contiguous; null: zero
  void* grad_x;                    // bwd, contiguous; null: not wanted

  int64_t in(int k) const { return features * layers[k].before; }
  int64_t out(int k) const { return features * layers[k].after; }
  int64_t work() const {  // multiply-adds a row, masked ones too
    int64_t sum = 0;
    for (int k = 0; k < n; ++k) sum += in(k) * out(k);
    return sum;
  }
};

// The tensors of a layer; log_norm and gradients may be absent.
struct BlockViews {
  View weight, bias, log_norm, grad_weight, grad_bias, grad_log_norm;
};

// The layers of a call on so many rows. What kernels read has been checked against the tensors.
class BlockLayers {
 public:
  BlockLayers(int64_t rows, int64_t features, int64_t layers, int activation, int residual, bool inverse, double eps);
  BlockLayers(const BlockLayers&) = delete;  // args point into it

  void add(const BlockViews&);
  void close(const View& gate, const View& grad_gate);  // after the last layer

  BlockArgs args = {};

 private:
  std::vector<BlockLayer> layers_;
};

BlockArgs block_made_fwd_args(const BlockLayers&, const View& x, const View& y, const View& ladj);
BlockArgs block_made_bwd_args(const BlockLayers&, const View& x, const View& y, const View& grad_y,
                              const View& grad_ladj, const View& grad_x);

void block_made_fwd(const BlockArgs&, int threads);
void block_made_bwd(const BlockArgs&, int threads);

}  // namespace fk
