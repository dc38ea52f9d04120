// Launchers of whole flows, on raw pointers: layers one after another on the same rows, and the sum of their
// log-determinants. No torch, no Python.
#pragma once
#include <memory>

#include "../flow_layer/flow_layer.h"

namespace fk {

// What the layers of a flow are, apart from their tensors; checked once for all calls. Reordering features costs
// nothing: it only says where the layers behind it find them.
class FlowPlan {
 public:
  struct Layer {
    UnivariateMap map;
    std::vector<int32_t> inputs, outputs;  // places of what the net sees and what is mapped
  };

  explicit FlowPlan(int64_t features);
  void add_layer(const UnivariateMap&, const Columns&);
  void add_order(const std::vector<int32_t>& order);  // feature i is then what feature order[i] was

  const int64_t features;
  const std::vector<Layer>& layers() const { return layers_; }
  const int32_t* order() const { return moved_ ? place_.data() : nullptr; }

 private:
  std::vector<Layer> layers_;
  std::vector<int32_t> place_;  // of each feature, in the order of the flow's input
  bool moved_ = false;
};

// A layer of a call.
struct FlowStep {
  NetSpec net;
  const UnivariateMap* map;
  const int32_t *in, *out;
  int64_t n_out;
  void* x;  // [rows, features] what enters the layer, written by fwd, read by bwd; null: not kept, or the call's x
};

struct FlowArgs {
  DType type;  // f32 or f64
  int64_t rows, features;
  const FlowStep* steps;
  int n;
  const int32_t* order;  // where each feature of y stands in the order of x; null: in the same place
  const void* x;         // [rows, features], rows x_stride apart
  int64_t x_stride;
  void* y;             // [rows, features]
  void* ladj;          // [rows]
  const void* grad_y;  // bwd, contiguous; null: zero
  const void* grad_ladj;
  void* grad_x;  // null: not wanted
};

// A call: the networks of all layers, and what kernels read of them, checked against the tensors.
class FlowCall {
 public:
  FlowCall(std::shared_ptr<const FlowPlan>, int64_t rows);
  FlowCall(const FlowCall&) = delete;  // steps point into it

  void add(std::unique_ptr<NetLayers>);  // the next layer's network
  void close();                          // after the last

  // How many numbers are kept for backward: what enters each layer, and inside of networks what enters the second
  // layer of each block (of plain ones, each layer) or, of `all`, every layer where that saves a product.
  int64_t kept_size(bool all) const;
  // Room for the gradient of each tensor, in their order; one that is not given is not wanted. Before bwd.
  int64_t n_tensors() const { return int64_t(grads_.size()); }
  void take_grad(int64_t i, const View& grad);

  FlowArgs fwd(const View& x, const View& y, const View& ladj, const View& kept);
  FlowArgs bwd(const View& x, const View& grad_y, const View& grad_ladj, const View& grad_x, const View& kept);

 private:
  struct Grad {
    void** to;
    int64_t size;
  };
  FlowArgs args(const View& x);
  void take_kept(const View& kept);
  template <class F>
  int64_t each_kept(bool all, const F& f) const;

  std::shared_ptr<const FlowPlan> plan_;
  std::vector<std::unique_ptr<NetLayers>> nets_;
  std::vector<FlowStep> steps_;
  std::vector<Grad> grads_;
  DType type_ = DType::other;
  int64_t rows_;
};

void flow_fwd(const FlowArgs&, int threads);
void flow_bwd(const FlowArgs&, int threads);

}  // namespace fk
