// How a launcher is told about a tensor it did not allocate.
#pragma once
#include <stdint.h>

namespace fk {

// Kernels compute in the first four; the others are those of orders and masks, and any that no kernel takes.
enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3, i32 = 4, bytes = 5, other = 6, i64 = 7 };

// The leading dims of two inputs that share them (x and params), with strides in elements.
// Contiguous leading dims arrive collapsed to one.
struct LeadingDims {
  static constexpr int kMaxDims = 8;
  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride_a[kMaxDims] = {};
  int64_t stride_b[kMaxDims] = {};

  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= size[i];
    return n;
  }
};

// Walks the rows in order from any start, without a division per row.
struct RowCursor {
  const LeadingDims& rows;
  int64_t index[LeadingDims::kMaxDims] = {};
  int64_t a = 0, b = 0;  // element offsets of the current row

  RowCursor(const LeadingDims& r, int64_t row) : rows(r) {
    for (int i = r.ndim - 1; i >= 0; --i) {
      index[i] = row % r.size[i];
      row /= r.size[i];
      a += index[i] * r.stride_a[i];
      b += index[i] * r.stride_b[i];
    }
  }
  void next() {
    for (int i = rows.ndim - 1; i >= 0; --i) {
      a += rows.stride_a[i];
      b += rows.stride_b[i];
      if (++index[i] < rows.size[i]) return;
      a -= index[i] * rows.stride_a[i];
      b -= index[i] * rows.stride_b[i];
      index[i] = 0;
    }
  }
};

}  // namespace fk
