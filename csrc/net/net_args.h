// A network as Python lists it, and the gate in front of every kernel that runs one: shared by the CPU's module and
// CUDA's.
#pragma once
#include <memory>
#include <vector>

#include "mask.h"
#include "net.h"

namespace fk {

// The tensors of a layer; all but the weight may be absent.
struct LayerViews {
  View weight, bias, add, gate, scale, shift, kept;
  View grad_weight, grad_bias, grad_add, grad_gate, grad_scale, grad_shift;
};

// The layers of a call on so many rows. What kernels read of `spec` has been checked against the tensors.
class NetLayers {
 public:
  NetLayers(int64_t layers, int64_t rows, bool residual, int activation, int last);
  NetLayers(const NetLayers&) = delete;  // spec points into it

  void add(const LayerViews&, std::shared_ptr<const LayerMask>);
  void close();  // after the last layer

  MaskedLayer& at(int i) { return layers_[size_t(i)]; }  // for what comes with a call: what is kept, gradients

  NetSpec spec = {};
  DType type = DType::other;  // of all tensors
  int64_t rows;
  const std::vector<std::shared_ptr<const LayerMask>>& masks() const { return masks_; }

 private:
  void check_layer(const LayerViews&, const LayerMask*) const;

  std::vector<MaskedLayer> layers_;
  std::vector<InputScale> scales_;  // layers_ point into it
  std::vector<std::shared_ptr<const LayerMask>> masks_;
};

void check_threads(int threads);

NetArgs net_fwd_args(const NetLayers&, const View& x, const View& y);
NetArgs net_bwd_args(const NetLayers&, const View& x, const View& y, const View& grad_y, const View& grad_x);

}  // namespace fk
