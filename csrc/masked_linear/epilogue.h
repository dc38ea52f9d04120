// What a GPU does around the library's products of masked layers: packs weights before them, adds biases and applies
// activations after them. Launchers on raw pointers. No torch, no Python.
#pragma once
#include <array>
#include <stdexcept>
#include <vector>

#include "../common/cuda_stream.h"
#include "net.h"

namespace fk {

// A matrix of rows that lie `stride` elements apart (0: one row for all), or null. Its c-th column is at[c]; null: c.
struct Matrix {
  void* data;
  int64_t stride;
  const int32_t* at;
};

// Forward: z = product + bias + add + stream, y = act(z). Backward: g_z = g act'(kept) + stream, with `kept` the
// activation's value, or its argument where the value does not tell the slope. Outputs may lie where an operand does
// if neither has columns of its own.
struct EpilogueArgs {
  DType type;
  Activation activation;
  int64_t rows, columns;
  Matrix operands[4];  // product, bias, add, stream; g, kept, stream, none
  Matrix outputs[2];   // z, y; g_z, none
};

// A layer's weights as their owner keeps them and as products take them: packed[j, k] = weight[row[j], column[k]] where
// rank[k] < limit[j], else 0. Null row, column, rank: nothing is permuted.
struct Packing {
  void* weight;  // [n_out, n_in]
  int64_t weight_stride;
  void* packed;
  int64_t packed_stride, n_out, n_in;
  const int32_t *row, *column, *rank, *limit;
  const int32_t* width;  // how much of a packed row a product reads; null: all
};

constexpr int kMostPackings = 16;  // of one launch

void epilogue_fwd(const EpilogueArgs&, const CudaStream&);
// sums: [slices, sums_columns] or null; column c of the sums over rows goes to sums_at[c], or to c.
void epilogue_bwd(const EpilogueArgs&, double* sums, int64_t sums_columns, const int32_t* sums_at, int64_t slices,
                  const CudaStream&);
// Adds up the slices.
void epilogue_sums(DType, const double* sums, int64_t slices, int64_t columns, void* out, const CudaStream&);
// Fills what products read of packed; or, `unpack`, all of weight, the gradient of one whose gradient is packed.
void masked_pack(int64_t bytes_of_number, bool unpack, const std::vector<Packing>&, const CudaStream&);

// ---- as Python lists them ----

using MatrixNumbers = std::array<int64_t, 3>;

inline Matrix matrix_of(const MatrixNumbers& n) {
  return {reinterpret_cast<void*>(uintptr_t(n[0])), n[1], reinterpret_cast<const int32_t*>(uintptr_t(n[2]))};
}

inline EpilogueArgs epilogue_args(int type, int activation, int64_t rows, int64_t columns,
                                  const std::array<MatrixNumbers, 6>& m) {
  EpilogueArgs a = {DType(type), Activation(activation), rows, columns, {}, {}};
  for (int i = 0; i < 6; ++i) (i < 4 ? a.operands[i] : a.outputs[i - 4]) = matrix_of(m[i]);
  if (rows < 1 || columns < 1) throw std::invalid_argument("epilogue: empty tensor");
  if (!a.operands[0].data) throw std::invalid_argument("epilogue: null data pointer");
  return a;
}

// Weight, its stride, packed, its stride, n_out, n_in, row, column, rank, limit, width.
using PackingNumbers = std::array<int64_t, 11>;

inline std::vector<Packing> packings_of(const std::vector<PackingNumbers>& numbers) {
  const auto at = [](int64_t p) { return reinterpret_cast<void*>(uintptr_t(p)); };
  const auto ints = [&](int64_t p) { return static_cast<const int32_t*>(at(p)); };
  std::vector<Packing> out;
  for (const PackingNumbers& n : numbers) {
    if (!n[0] || !n[2] || !n[9]) throw std::invalid_argument("pack: null data pointer");
    out.push_back(
        {at(n[0]), n[1], at(n[2]), n[3], n[4], n[5], ints(n[6]), ints(n[7]), ints(n[8]), ints(n[9]), ints(n[10])});
  }
  return out;
}

}  // namespace fk
