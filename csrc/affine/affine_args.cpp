// From what torch says of the tensors to a call of the affine map, checked for what would corrupt memory: shared by the
// CPU's module and CUDA's.
#include <algorithm>
#include <vector>

#include "../common/view_like.h"
#include "affine.h"

namespace fk {

AffineSpec affine_spec(int scale, double min_scale, double clamp, bool inverse, double low, double high,
                       bool shift_first, const std::array<int64_t, 4>& layout) {
  check_number("AffineSpec: scale", scale, 0, 8);
  const auto [event_dims, start, stop, step] = layout;
  check_number("AffineSpec: event_dims", event_dims, 1, View::kMaxDims);
  const bool whole = start == 0 && stop == 0 && step == 1;
  if (!whole && !(0 <= start && start < stop && step >= 1))
    refuse("AffineSpec: part", "0 <= start < stop and a step from 1 on", text_of(&layout[1], 3));
  return {AffineScale(scale), min_scale, clamp, inverse, low, high, shift_first, int(event_dims), start, stop, step};
}

void check_each_feature(const AffineSpec& s) {
  if (!s.each_feature())
    refuse("UnivariateMap: the affine map", "of each feature by itself", "one of a part or of several dims");
}

namespace {

using A = AffineTensors;

// A tensor as the nest walks it: address, and a stride for every dim of x.
struct Operand {
  char* data = nullptr;
  int64_t stride[View::kMaxDims] = {};
};

// The logical shape that all loops have: x's, or that of its mapped part.
struct Mapped {
  int ndim, part;  // dims; the one that the part is of
  int64_t size[View::kMaxDims];
};

Mapped mapped_of(const AffineSpec& spec, const View& x) {
  if (x.ndim < spec.event_dims)
    refuse("affine: x", "of " + std::to_string(spec.event_dims) + " dims or more", sizes_of(x));
  Mapped m = {x.ndim, x.ndim - spec.event_dims, {}};
  for (int i = 0; i < x.ndim; ++i) m.size[i] = x.size[i];
  if (!spec.in_part()) return m;
  if (spec.stop > x.size[m.part])
    refuse("affine: part", "within " + std::to_string(x.size[m.part]) + " features", "to " + std::to_string(spec.stop));
  m.size[m.part] = (spec.stop - spec.start + spec.step - 1) / spec.step;
  return m;
}

// What of a tensor shaped like x is mapped.
Operand like_x(const AffineSpec& spec, const Mapped& m, const View& t) {
  Operand o = {static_cast<char*>(t.data), {}};
  std::copy_n(t.stride, m.ndim, o.stride);
  if (!spec.in_part()) return o;
  if (o.data) o.data += spec.start * t.stride[m.part] * bytes_of_type(t.type);
  o.stride[m.part] *= spec.step;
  return o;
}

Operand as_it_lies(const Mapped& m, const View& t, int64_t offset) {
  Operand o = {static_cast<char*>(t.data), {}};
  if (o.data) o.data += offset * bytes_of_type(t.type);
  std::copy_n(t.stride, m.ndim, o.stride);
  return o;
}

// Logit and shift, or their gradients: two tensors, or one with a last dim for both.
void place_params(const AffineSpec& spec, const Mapped& m, const View& params, const View& shift, Operand* u,
                  Operand* t) {
  if (shift.given()) {
    *u = as_it_lies(m, params, 0);
    *t = as_it_lies(m, shift, 0);
  } else if (spec.params() == 1) {
    *t = as_it_lies(m, params, 0);
  } else {
    const int64_t apart = params.stride[m.ndim];
    *u = as_it_lies(m, params, spec.shift_first ? apart : 0);
    *t = as_it_lies(m, params, spec.shift_first ? 0 : apart);
  }
}

void check_params(const char* name, const char* shift_name, const AffineSpec& spec, const Mapped& m, const View& params,
                  const View& shift) {
  check_input(name, params);
  check_sizes_like(name, params, m.size, m.ndim, shift.given() ? -1 : spec.params());
  if (!shift.given()) return;
  if (spec.params() == 1) refuse(shift_name, "None where the scale is 1", "a tensor");
  check_input(shift_name, shift);
  check_type(shift_name, shift, params.type);
  check_sizes_like(shift_name, shift, m.size, m.ndim);
}

// The mask's dims are the event's last ones, and broadcast.
Operand mask_of(const AffineSpec& spec, const Mapped& m, const View& mask) {
  Operand o;
  if (!mask.given()) return o;
  check_storage("affine: mask", mask);
  check_type("affine: mask", mask, DType::bytes);
  const int missing = m.ndim - mask.ndim;
  bool fits = mask.ndim <= spec.event_dims;
  for (int i = 0; fits && i < mask.ndim; ++i) fits = mask.size[i] == 1 || mask.size[i] == m.size[missing + i];
  if (!fits)
    refuse("affine: mask", "one that broadcasts to the event " + text_of(m.size + m.part, spec.event_dims),
           sizes_of(mask));
  o.data = static_cast<char*>(mask.data);
  for (int i = 0; i < mask.ndim; ++i) o.stride[missing + i] = mask.size[i] == 1 ? 0 : mask.stride[i];
  return o;
}

void check_like_x(const char* name, const View& x, const View& t) {
  check_storage(name, t);
  check_type(name, t, x.type);
  check_sizes_like(name, t, x.size, x.ndim);
}

// The loops over all elements, as affine.h describes them.
AffineNest nest_of(const Mapped& m, const Operand (&operands)[A::count]) {
  struct Dim {
    int64_t size, stride[A::count];
  };
  std::vector<Dim> dims(size_t(m.ndim));
  for (int d = 0; d < m.ndim; ++d) {
    dims[size_t(d)].size = m.size[d];
    for (int k = 0; k < A::count; ++k) dims[size_t(d)].stride[k] = operands[k].stride[d];
  }
  std::stable_sort(dims.begin() + m.part, dims.end(),
                   [](const Dim& a, const Dim& b) { return a.stride[A::x] > b.stride[A::x]; });
  AffineNest nest;
  for (const Dim& d : dims) {
    if (d.size == 1) continue;
    const int last = nest.ndim - 1;
    bool joins = last >= 0;
    for (int k = 0; joins && k < A::count; ++k) joins = nest.stride[last][k] == d.size * d.stride[k];
    const int at = joins ? last : nest.ndim++;
    nest.size[at] = joins ? nest.size[at] * d.size : d.size;
    for (int k = 0; k < A::count; ++k) nest.stride[at][k] = d.stride[k];
  }
  if (nest.ndim == 0) {
    nest.ndim = 1;
    nest.size[0] = 1;
    for (int k = 0; k < A::count; ++k) nest.stride[0][k] = 1;
  }
  return nest;
}

// What of `from` (none: zeros) is not mapped, to `to`, where both are dense.
AffinePass pass_of(const AffineSpec& spec, const Mapped& m, const View& from, const View& to) {
  if (!spec.in_part() || spec.step != 1 || !is_contiguous(to) || (from.given() && !is_contiguous(from)))
    refuse("affine: pass", "of a part of step 1 of dense tensors", "strides " + strides_of(to));
  int64_t inner = bytes_of_type(to.type);
  for (int d = m.part + 1; d < m.ndim; ++d) inner *= to.size[d];
  return {static_cast<const char*>(from.data), static_cast<char*>(to.data), to.size[m.part] * inner, spec.start * inner,
          spec.stop * inner};
}

// All that both passes read.
struct Inputs {
  Mapped m;
  Operand operands[A::count];

  Inputs(const AffineSpec& spec, const View& x, const View& params, const View& shift, const View& mask)
      : m(mapped_of(spec, x)) {
    check_params("affine: params", "affine: shift", spec, m, params, shift);
    check_params_type("affine: params", params, x.type);
    operands[A::x] = like_x(spec, m, x);
    place_params(spec, m, params, shift, &operands[A::u], &operands[A::t]);
    operands[A::mask] = mask_of(spec, m, mask);
  }
};

AffineArgs args_of(const Inputs& in, const View& x, const View& params, const char* ladj_name, const View& ladj) {
  AffineArgs a;
  a.nest = nest_of(in.m, in.operands);
  for (int d = 0; d < in.m.ndim; ++d) (d < in.m.part ? a.rows : a.event) *= in.m.size[d];
  a.x_type = x.type, a.params_type = params.type;
  for (int k = 0; k < A::count; ++k) a.data[k] = in.operands[k].data;
  check_contiguous_or_none(ladj_name, ladj, wide_type(x.type), x.size, in.m.part);
  a.ladj = ladj.data;
  return a;
}

}  // namespace

AffineArgs affine_fwd_args(const AffineSpec& spec, bool passes, const View& x, const View& params, const View& shift,
                           const View& mask, const View& y, const View& ladj) {
  check_input("affine: x", x);
  Inputs in(spec, x, params, shift, mask);
  check_like_x("affine: y", x, y);
  check_writable("affine: y", y);
  check_given("affine: ladj", ladj);
  in.operands[A::y] = like_x(spec, in.m, y);
  AffineArgs a = args_of(in, x, params, "affine: ladj", ladj);
  if (passes) a.pass = pass_of(spec, in.m, x, y);
  return a;
}

AffineArgs affine_bwd_args(const AffineSpec& spec, bool passes, const View& x, const View& params, const View& shift,
                           const View& mask, const View& grad_y, const View& grad_ladj, const View& grad_x,
                           const View& grad_params, const View& grad_shift) {
  check_input("affine: x", x);
  Inputs in(spec, x, params, shift, mask);
  if (grad_y.given()) {
    check_like_x("affine: grad_y", x, grad_y);
    in.operands[A::grad_y] = like_x(spec, in.m, grad_y);
  }
  if (grad_x.given()) {
    check_like_x("affine: grad_x", x, grad_x);
    check_writable("affine: grad_x", grad_x);
    in.operands[A::grad_x] = like_x(spec, in.m, grad_x);
  }
  if (grad_params.given()) {
    if (grad_shift.given() != shift.given())
      refuse("affine: grad_shift", "given where shift is", grad_shift.given() ? "a tensor" : "None");
    check_params("affine: grad_params", "affine: grad_shift", spec, in.m, grad_params, grad_shift);
    check_type("affine: grad_params", grad_params, params.type);
    check_writable("affine: grad_params", grad_params);
    check_writable("affine: grad_shift", grad_shift);
    place_params(spec, in.m, grad_params, grad_shift, &in.operands[A::grad_u], &in.operands[A::grad_t]);
  } else if (grad_shift.given()) {
    refuse("affine: grad_params", "given where grad_shift is", "None");
  }
  AffineArgs a = args_of(in, x, params, "affine: grad_ladj", grad_ladj);
  if (passes) {
    check_given("affine: grad_x", grad_x);
    a.pass = pass_of(spec, in.m, grad_y, grad_x);
  }
  return a;
}

}  // namespace fk
