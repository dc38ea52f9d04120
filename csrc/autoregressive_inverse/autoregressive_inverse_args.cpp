// From what Python lists to a call of the autoregressive inverse, checked for what would corrupt memory: shared by the
// CPU's module and CUDA's.
#include "autoregressive_inverse.h"

namespace fk {

namespace {

SweepArgs sweep_args(const NetLayers& net, const UnivariateMap& map, const View& z, const View& x) {
  const int64_t features = net.spec.layers[0].n_in, n_out = net.spec.n_out();
  if (n_out != features * map.params())
    refuse("sweep: outputs of the net", std::to_string(features * map.params()), std::to_string(n_out));
  if (net.spec.scaled()) refuse("sweep: scales", "None", "a tensor");
  map.check(net.type);
  check_rows("sweep: z", z, net.type, net.rows, features);
  check_dense("sweep: x", x, net.type, net.rows * features);
  SweepArgs a = {};
  a.net = net.spec;
  a.map = map;
  a.type = net.type;
  a.rows = net.rows, a.features = features;
  a.z = z.data, a.z_stride = z.stride[0];
  a.x = x.data;
  return a;
}

MapBox checked_box(const char* name, const UnivariateMap& map) {
  MapBox box = {};
  if (!map.visit([&](const auto& spec) { return box_of(spec, &box); }))
    refuse("sweep: the map", std::string("a spline, as only that has a box, where ") + name + " is", "another");
  return box;
}

CircleShift circle_shift_of(const UnivariateMap& map) {
  const MapBox box = checked_box("half_turn", map);
  const double length = box.right - box.left;
  return {box.left + length / 2, length / 2, 1 / length};
}

}  // namespace

SweepArgs sweep_fwd_args(const NetLayers& net, const UnivariateMap& map, const View& z, const View& x, const View& ladj,
                         bool circle_shift) {
  SweepArgs a = sweep_args(net, map, z, x);
  check_dense("sweep: ladj", ladj, a.type, a.rows);
  a.ladj = ladj.data;
  if (circle_shift) a.shift = circle_shift_of(map);
  return a;
}

void sweep_fwd_more(SweepArgs& a, const View& periodic_features, bool zero_outside) {
  if (zero_outside) {
    const MapBox box = checked_box("zero_outside", a.map);
    a.zero_outside = {true, box.bottom, box.top};
  }
  if (periodic_features.given()) check_contiguous("sweep: waves", periodic_features, a.type, {a.features, 5});
  a.periodic_features = periodic_features.data;
}

SweepArgs sweep_bwd_args(const NetLayers& net, const UnivariateMap& map, const View& z, const View& x,
                         const View& grad_x, const View& grad_ladj, const View& grad_z) {
  SweepArgs a = sweep_args(net, map, z, x);
  if (grad_x.given()) check_dense("sweep: grad_x", grad_x, a.type, a.rows * a.features);
  if (grad_ladj.given()) check_dense("sweep: grad_ladj", grad_ladj, a.type, a.rows);
  if (grad_z.given()) check_dense("sweep: grad_z", grad_z, a.type, a.rows * a.features);
  a.grad_x = grad_x.data, a.grad_ladj = grad_ladj.data, a.grad_z = grad_z.data;
  return a;
}

void sweep_bwd_more(SweepArgs& a, const View& seen, const View& slope, const View& grad_seen) {
  if (seen.given()) check_dense("sweep: seen", seen, a.type, a.rows * a.features);
  if (slope.given()) check_dense("sweep: slope", slope, a.type, a.rows * a.features);
  if (grad_seen.given()) check_dense("sweep: grad_seen", grad_seen, a.type, a.rows * a.features);
  a.seen = seen.data, a.slope = slope.data, a.grad_seen = grad_seen.data;
}

void sweep_is_stuck() { refuse("sweep: masks", "of units that see none but features before them", "others"); }

}  // namespace fk
