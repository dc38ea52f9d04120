// The gate in front of what a GPU does around the products of masked layers.
#include "epilogue.h"
#include "mask.h"

namespace fk {

namespace {

const int32_t* checked_order(const std::vector<int32_t>& values, const View& there) {
  check_number("order: its length", int64_t(values.size()), 1, INT32_MAX);
  check_order("order", values, int64_t(values.size()));
  check_contiguous("order: on the device", there, DType::i32, {int64_t(values.size())});
  return static_cast<const int32_t*>(there.data);
}

void check_within(const char* name, const std::vector<int32_t>& values, int64_t most) {
  for (int32_t v : values) check_number(name, v, 0, most);
}

bool is_floating(DType type) { return type <= DType::f16; }

// [rows, columns], or one row for all where `one` may be.
Matrix matrix_of(const char* name, const MatrixViews& m, DType type, int64_t rows, int64_t columns, bool one) {
  const View& v = *m.matrix;
  if (!v.given()) return {};
  if (one && v.ndim == 1)
    check_contiguous(name, v, type, {columns});
  else
    check_rows(name, v, type, rows, columns);
  if (m.at && m.at->n != columns)
    refuse(std::string("the order of ") + name, "of " + std::to_string(columns) + " columns", std::to_string(m.at->n));
  return {v.data, v.ndim == 1 ? 0 : v.stride[0], m.at ? m.at->at : nullptr};
}

}  // namespace

DeviceOrder::DeviceOrder(const std::vector<int32_t>& values, const View& there)
    : n(int64_t(values.size())), at(checked_order(values, there)) {}

PackLayout::PackLayout(int64_t n_out, int64_t n_in, const std::array<Ints, 5>& values,
                       const std::array<const View*, 5>& there)
    : layout{} {
  check_number("pack: n_out", n_out, 1, INT32_MAX);
  check_number("pack: n_in", n_in, 1, INT32_MAX);
  const auto& [row, column, rank, limit, width] = values;
  check_order("pack: row", row, n_out);
  check_order("pack: column", column, n_in);
  check_order("pack: rank", rank, n_in);
  check_number("pack: the length of limit", int64_t(limit.size()), n_out, n_out);
  if (!width.empty()) check_number("pack: the length of width", int64_t(width.size()), n_out, n_out);
  check_within("pack: limit", limit, n_in);
  check_within("pack: width", width, n_in);
  layout.n_out = n_out, layout.n_in = n_in;
  const int32_t** const read[] = {&layout.row, &layout.column, &layout.rank, &layout.limit, &layout.width};
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].empty()) continue;
    check_contiguous("pack: an order or limit on the device", *there[i], DType::i32, {int64_t(values[i].size())});
    *read[i] = static_cast<const int32_t*>(there[i]->data);
  }
}

EpilogueArgs epilogue_args(int activation, const std::array<MatrixViews, 6>& m) {
  const View& product = *m[0].matrix;
  check_given("epilogue: the first operand", product);
  if (!is_floating(product.type)) refuse("epilogue: the first operand", "floating", name_of(product.type));
  if (product.ndim != 2) refuse("epilogue: the first operand", "[rows, columns]", text_of(product.size, product.ndim));
  check_number("epilogue: rows", product.size[0], 1, INT64_MAX);
  check_number("epilogue: columns", product.size[1], 1, INT32_MAX);
  check_number("epilogue: activation", activation, 0, int(Activation::tanh));
  EpilogueArgs a = {product.type, Activation(activation), product.size[0], product.size[1], {}, {}};
  checked_product("epilogue: elements", {a.rows, a.columns, 8});
  for (int i = 0; i < 6; ++i)
    (i < 4 ? a.operands[i] : a.outputs[i - 4]) = matrix_of(i < 4 ? "epilogue: an operand" : "epilogue: an output",
                                                           m[size_t(i)], a.type, a.rows, a.columns, i < 4);
  return a;
}

EpilogueSums epilogue_sums_args(const EpilogueArgs& a, const View& sums, int64_t first, const DeviceOrder* at,
                                int64_t slices) {
  check_number("epilogue: slices", slices, 1, INT32_MAX / (a.columns / 32 + 1));  // times blocks of columns: a grid
  if (!sums.given()) return {nullptr, 0, nullptr, slices};
  const int64_t columns = sums.ndim == 2 ? sums.size[1] : 0;
  check_contiguous("epilogue: sums", sums, DType::f64, {slices, columns});
  check_number("epilogue: the first column of sums", first, 0, columns - a.columns);
  if (at && at->n != a.columns)
    refuse("epilogue: the order of sums", "of " + std::to_string(a.columns) + " columns", std::to_string(at->n));
  return {static_cast<double*>(sums.data) + first, columns, at ? at->at : nullptr, slices};
}

void check_epilogue_sums(const View& sums, const View& out) {
  const int64_t slices = sums.ndim == 2 ? sums.size[0] : 0, columns = sums.ndim == 2 ? sums.size[1] : 0;
  check_contiguous("epilogue: sums", sums, DType::f64, {slices, columns});
  check_number("epilogue: slices", slices, 1, INT32_MAX);
  check_number("epilogue: columns of sums", columns, 1, INT32_MAX);
  if (!is_floating(out.type)) refuse("epilogue: the sums' output", "floating", name_of(out.type));
  check_contiguous("epilogue: the sums' output", out, out.type, {columns});
}

Packing packing_of(DType type, const View& weight, const View& packed, const PackLayout& of) {
  Packing p = of.layout;
  if (!is_floating(type)) refuse("pack: weight", "floating", name_of(type));
  check_rows("pack: weight", weight, type, p.n_out, p.n_in);
  check_rows("pack: packed", packed, type, p.n_out, p.n_in);
  p.weight = weight.data, p.weight_stride = weight.stride[0];
  p.packed = packed.data, p.packed_stride = packed.stride[0];
  return p;
}

}  // namespace fk
