// What a GPU does around the library's products of masked layers: packs weights before them, adds biases and applies
// activations after them. Launchers on raw pointers. No torch, no Python.
#pragma once
#include <array>
#include <vector>

#include "../common/cuda_stream.h"
#include "../common/view.h"
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
void masked_pack(DType, bool unpack, const std::vector<Packing>&, const CudaStream&);

// ---- as Python lists them, checked ----

// A permutation that lies on a device: `values` are what is there, read once where it was made.
class DeviceOrder {
 public:
  DeviceOrder(const std::vector<int32_t>& values, const View& there);
  const int64_t n;
  const int32_t* const at;
};

// How a layer is packed; made once for all calls. Empty: null in Packing.
class PackLayout {
 public:
  using Ints = std::vector<int32_t>;
  // `values`: row, column, rank, limit, width; `there`: the same on the device.
  PackLayout(int64_t n_out, int64_t n_in, const std::array<Ints, 5>& values, const std::array<const View*, 5>& there);
  Packing layout;  // without weight and packed
};

struct MatrixViews {
  const View* matrix;
  const DeviceOrder* at;  // null: columns lie in order
};

// operands and outputs of EpilogueArgs, the product's type and size being everybody's.
EpilogueArgs epilogue_args(int activation, const std::array<MatrixViews, 6>&);

struct EpilogueSums {
  double* data;  // null: not wanted
  int64_t columns;
  const int32_t* at;
  int64_t slices;
};
// `sums` [slices, all columns]: the call's go to those from `first` on.
EpilogueSums epilogue_sums_args(const EpilogueArgs&, const View& sums, int64_t first, const DeviceOrder* at,
                                int64_t slices);
void check_epilogue_sums(const View& sums, const View& out);

// A layer of a launch, all of whose layers are of this type.
Packing packing_of(DType, const View& weight, const View& packed, const PackLayout&);

}  // namespace fk
