// Launchers of whole flows, on raw pointers: layers one after another on the same rows, and the sum of their
// log-determinants. No torch, no Python.
#pragma once
#include <memory>

#include "../flow_layer/flow_layer.h"
#include "../lu_linear/lu_linear.h"

namespace fk {

enum class StepKind { layer, sweep, lu, scale, elementwise, normal };

// Whether such a step has a net.
constexpr bool has_net(StepKind kind) { return kind == StepKind::layer || kind == StepKind::sweep; }

// What the steps of a flow are, apart from their tensors; checked once for all calls. Reordering features costs
// nothing: it only says where the steps behind it find them.
class FlowPlan {
 public:
  struct Step {
    StepKind kind;
    UnivariateMap map = {};                          // layer, sweep, elementwise
    bool inverse = false;                            // lu, scale
    bool is_log = false;                             // scale: its logarithm is given
    bool has_shift = false;                          // lu, scale
    std::vector<int32_t> inputs = {}, outputs = {};  // places of what is seen, and of what is mapped
    std::vector<int64_t> permutation = {};           // lu; none: the identity
  };

  explicit FlowPlan(int64_t features);
  void add_layer(const UnivariateMap&, const Columns&);
  // The other direction of an autoregressive layer, whose net sees and whose map changes every feature; `map` is the
  // inverse of the layer's.
  void add_sweep(const UnivariateMap&);
  void add_order(const std::vector<int32_t>& order);  // feature i is then what feature order[i] was
  // y = P L (U + diag(sign_s exp(log_s))) x + bias, or its inverse; (P v)[i] = v[permutation[i]].
  void add_lu(bool inverse, const std::vector<int32_t>& permutation, bool has_bias);
  // y = x scale + shift, of each feature; or its inverse, (x - shift) / scale.
  void add_scale(bool inverse, bool is_log, bool has_shift);
  void add_elementwise(const UnivariateMap&, const std::vector<int32_t>& outputs);  // parameters of its own
  void add_normal();  // x stays; ladj is the log-density of the standard normal there

  const int64_t features;
  const std::vector<Step>& steps() const { return steps_; }
  const int32_t* order() const { return moved_ ? place_.data() : nullptr; }

 private:
  Step& add(Step);
  std::vector<int32_t> placed(const std::vector<int32_t>&) const;

  std::vector<Step> steps_;
  std::vector<int32_t> place_;  // of each feature, in the order of the flow's input
  bool moved_ = false;
};

// A step of a call.
struct FlowStep {
  StepKind kind;
  NetSpec net = {};  // layer, sweep
  const UnivariateMap* map = nullptr;
  const int32_t *in = nullptr, *out = nullptr;
  int64_t n_out = 0;
  bool inverse = false, is_log = false;
  LuArgs lu = {};  // lu
  // scale: [features]; elementwise: scale is its parameters, [n_out, params]
  const void *scale = nullptr, *shift = nullptr;
  void *grad_scale = nullptr, *grad_shift = nullptr;
  // [rows, features] what enters the step, and what leaves the last one if that is a sweep; written by fwd, read by
  // bwd; null: not kept, or the call's
  void *x = nullptr, *after = nullptr;

  int64_t params() const { return n_out * map->params(); }
  int64_t multiply_adds(int64_t features) const;  // of a row, but for those of maps
  int64_t widths(int64_t features) const;         // numbers that a row has inside of the step
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
  void* grad_x;     // null: not wanted
  bool recomputes;  // bwd: nothing was kept, and what enters each step is computed again, tile by tile
};

// A call: the tensors of all steps, and what kernels read of them, checked.
class FlowCall {
 public:
  FlowCall(std::shared_ptr<const FlowPlan>, int64_t rows);
  FlowCall(const FlowCall&) = delete;  // steps point into it

  void add(std::unique_ptr<NetLayers>);  // the next step's network, or, of one without, its tensors
  void add_lu(const View& lower, const View& upper, const View& log_s, const View& sign_s, const View& bias);
  void add_scale(const View& scale, const View& shift);
  void add_elementwise(const View& params);
  void add_normal();
  void close();  // after the last

  // How many numbers are kept for backward: what enters each layer and leaves a sweep, and inside of networks what
  // enters the second layer of each block (of plain ones, each layer) or, of `all`, every layer where that saves a
  // product.
  int64_t kept_size(bool all) const;
  // Room for the gradient of each tensor, in their order; one that is not given is not wanted. Before bwd.
  int64_t n_tensors() const { return int64_t(grads_.size()); }
  void take_grad(int64_t i, const View& grad);
  // The same, in one tensor, each from its place on; -1: not wanted.
  void take_grads(const View& flat, const std::vector<int64_t>& places);

  FlowArgs fwd(const View& x, const View& y, const View& ladj, const View& kept);
  // Without `kept` it computes the layers' inputs again.
  FlowArgs bwd(const View& x, const View& grad_y, const View& grad_ladj, const View& grad_x, const View& kept);

 private:
  struct Grad {
    void** to;
    int64_t size;
  };
  const FlowPlan::Step& next(StepKind, DType) const;
  void take(const char* name, const View&, std::initializer_list<int64_t> sizes, const void** at, void** grad);
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
