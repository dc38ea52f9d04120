// Launchers of the inverse of an autoregressive layer, on raw pointers. No torch, no Python.
#pragma once
#include "../common/cuda_stream.h"
#include "../net/net_args.h"
#include "../univariate/map.h"

namespace fk {

// Shifts values by half a period: treats a spline's box as a circle.
struct CircleShift {
  double middle, by;  // by: half the box's length; 0: values stay
  double inv_length;  // of the box
};

// Puts 0 where z is outside of [low, high], the box of a spline's values.
struct ZeroOutside {
  bool wanted;
  double low, high;
};

// Solves z_d = f(x_d; params_d(x_<d)) for x, where the masked net returns [features, P] parameters a row; `map` is f's
// inverse. The net's first layer orders the features.
struct SweepArgs {
  NetSpec net;
  UnivariateMap map;
  DType type;  // f32 or f64
  int64_t rows, features;
  const void* z;  // [rows, features], rows z_stride apart
  int64_t z_stride;
  CircleShift shift;         // fwd: of what the map returns; its derivative is 1, so that bwd need not know
  ZeroOutside zero_outside;  // fwd: of x
  // fwd: what the net sees in place of x, [features][5], see periodic_features.h; null: x
  const void* periodic_features;
  const void* seen;    // bwd: what the net saw in place of x, [rows, features] and contiguous; null: x
  const void* slope;   // bwd: its derivative by x, in the same way; null: 1
  void* grad_seen;     // null: not wanted
  void* x;             // [rows, features]: fwd writes it, bwd reads it
  void* ladj;          // [rows], of z -> x
  const void* grad_x;  // bwd, contiguous; null: zero
  const void* grad_ladj;
  void* grad_z;
};

SweepArgs sweep_fwd_args(const NetLayers&, const UnivariateMap&, const View& z, const View& x, const View& ladj,
                         bool circle_shift);
// What only a CPU sweeps.
void sweep_fwd_more(SweepArgs&, const View& periodic_features, bool zero_outside);
SweepArgs sweep_bwd_args(const NetLayers&, const UnivariateMap&, const View& z, const View& x, const View& grad_x,
                         const View& grad_ladj, const View& grad_z);
void sweep_bwd_more(SweepArgs&, const View& seen, const View& slope, const View& grad_seen);

// Throws: with masks of no plan of degrees a sweep would leave outputs as they are.
[[noreturn]] void sweep_is_stuck();

void sweep_fwd(const SweepArgs&, int threads);
void sweep_bwd(const SweepArgs&, int threads);

// What a sweep does, one after the other, as flowkernels/ops/autoregressive_inverse/schedule.py lists it: computes the
// units [first, first + count) of a layer, in degree order, from its first `inputs` inputs; or, where `layer` is the
// number of layers, maps the first-th feature in that order, column `count`.
struct alignas(16) SweepStep {  // one load of a GPU
  int32_t layer, first, count, inputs;
};
constexpr int kSweepUnits = 32;      // of a step
constexpr int kMaxSweepLayers = 16;  // of a net that a GPU sweeps

// The steps of a sweep over layers with these masks, checked once for all calls; what kernels read lies on the device.
class SweepSteps {
 public:
  SweepSteps(std::vector<std::shared_ptr<const LayerMask>> masks, const std::vector<std::array<int32_t, 4>>& steps,
             const View& on_device);

  const std::vector<std::shared_ptr<const LayerMask>> masks;
  const int64_t n;
  const SweepStep* const on_device;
};

struct SweepWork {
  const SweepStep* steps;  // on the device
  int64_t n_steps;
  void* packed;  // of sweep_packed() numbers, to be overwritten
};

SweepWork sweep_work(const SweepArgs&, const NetLayers&, const SweepSteps&, const View& packed);

// What the sweep back reads and leaves of the units of a layer, [units, rows] in memory's order, contiguous.
struct LayerUnits {
  // Of the last layer: the parameters. Of a layer before an activation: what that returned, or, where its slope does
  // not follow from it (gelu, silu), was given; of others null.
  const void* value;
  void* grad;  // of what the layer computes; null: not wanted. Units that no step computes are left as they are.
};

// Value and gradient of every layer.
std::vector<LayerUnits> sweep_units(const NetLayers&, const std::vector<std::array<const View*, 2>>&);

int64_t sweep_packed(const NetSpec&);
// Whether 32 rows of what enters the layers, so many units in all, find room in shared memory; bins: 0 for affine maps.
bool sweep_fits(int64_t units, const UnivariateMap&, int type, int device);
void sweep_fwd(const SweepArgs&, const SweepWork&, const CudaStream&);
void sweep_bwd(const SweepArgs&, const SweepWork&, const LayerUnits* of_layers, const CudaStream&);

}  // namespace fk
