// From what Python lists to a call of the recurrent inverse, checked for what would corrupt memory.
#include "recurrent_inverse.h"

namespace fk {

static void check_layer(const char* name, const NetLayers& net, int64_t n_in, int64_t n_out) {
  const MaskedLayer& l = net.spec.layers[0];
  const int64_t wanted[] = {n_out, n_in}, given[] = {l.n_out, l.n_in};
  if (net.spec.n != 1 || l.limit || l.add || l.gate || l.scaled || net.spec.last != Activation::identity)
    refuse(name, "one layer without a mask, an activation and terms", "another net");
  if (l.n_in != n_in || l.n_out != n_out) refuse(name, text_of(wanted, 2), text_of(given, 2));
}

RecurrentArgs recurrent_inverse_args(const NetLayers& cell, const NetLayers& last, const UnivariateMap& map,
                                     const View& z, const View& state, const View& gates, const View& value,
                                     const View& x) {
  const DType type = cell.type;
  const int64_t rows = cell.rows, H = cell.spec.layers[0].n_in;
  check_layer("recurrent_inverse: weight of the cell", cell, H, 3 * H);
  check_layer("recurrent_inverse: weight of the last layer", last, H, map.params());
  if (last.type != type) refuse("recurrent_inverse: the last layer", name_of(type), name_of(last.type));
  check_number("recurrent_inverse: rows of the last layer", last.rows, rows, rows);
  map.check(type);
  check_given("recurrent_inverse: z", z);
  if (z.ndim != 2) refuse("recurrent_inverse: z", "[rows, features]", text_of(z.size, z.ndim));
  const int64_t D = z.size[1];
  check_number("recurrent_inverse: features", D, 1, INT32_MAX);
  checked_product("recurrent_inverse: rows times features times multiply-adds", {rows, D, H, 3 * H + map.params()});
  check_rows("recurrent_inverse: z", z, type, rows, D);
  check_rows("recurrent_inverse: state", state, type, rows, H);
  check_rows("recurrent_inverse: gates", gates, type, rows, 3 * H);
  check_contiguous("recurrent_inverse: value", value, type, {3 * H});
  check_dense("recurrent_inverse: x", x, type, rows * D);
  RecurrentArgs a = {};
  a.cell = cell.spec, a.last = last.spec, a.map = map, a.type = type;
  a.rows = rows, a.features = D;
  a.z = z.data, a.z_stride = z.stride[0];
  a.state = state.data, a.state_stride = state.stride[0];
  a.gates = gates.data, a.gates_stride = gates.stride[0];
  a.value = value.data;
  a.x = x.data;
  return a;
}

void recurrent_inverse_fwd_more(RecurrentArgs& a, const View& ladj) {
  check_dense("recurrent_inverse: ladj", ladj, a.type, a.rows);
  a.ladj = ladj.data;
}

void recurrent_inverse_bwd_more(RecurrentArgs& a, const View& grad_x, const View& grad_ladj, const View& grad_z,
                                const View& grad_state, const View& grad_gates, const View& grad_value) {
  const int64_t H = a.hidden();
  const auto check = [&](const char* name, const View& v, int64_t width) {
    if (v.given()) check_dense(name, v, a.type, a.rows * width);
    return v.data;
  };
  a.grad_x = check("recurrent_inverse: grad_x", grad_x, a.features);
  a.grad_ladj = check("recurrent_inverse: grad_ladj", grad_ladj, 1);
  a.grad_z = check("recurrent_inverse: grad_z", grad_z, a.features);
  a.grad_state = check("recurrent_inverse: grad_state", grad_state, H);
  a.grad_gates = check("recurrent_inverse: grad_gates", grad_gates, 3 * H);
  a.grad_value = check("recurrent_inverse: grad_value", grad_value, 3 * H);
}

}  // namespace fk
