// A network as Python lists it: shared by the CPU's module and CUDA's.
#pragma once
#include <array>
#include <stdexcept>
#include <vector>

#include "net.h"

namespace fk {

// A layer: weight, its row stride, bias, n_in, n_out, in_order, out_order, limit, add, its row stride, gate, its row
// stride, kept input, gradients of weight, bias, add, gate.
using LayerNumbers = std::array<int64_t, 17>;

// Layers, residual, activation between layers and after the last.
struct NetLayers {
  std::vector<MaskedLayer> layers;
  NetSpec spec;

  NetLayers(const std::vector<LayerNumbers>& numbers, bool residual, int activation, int last) {
    if (numbers.empty() || numbers.size() > kMaxLayers) throw std::invalid_argument("a net has 1 to 64 layers");
    if (residual && numbers.size() % 2) throw std::invalid_argument("a residual net has an even number of layers");
    const auto at = [](int64_t p) { return reinterpret_cast<void*>(uintptr_t(p)); };
    const auto ints = [&](int64_t p) { return static_cast<const int32_t*>(at(p)); };
    for (const auto& n : numbers) {
      if (!n[0] || n[3] < 1 || n[4] < 1) throw std::invalid_argument("net: null weight or empty layer");
      if (!layers.empty() && layers.back().n_out != n[3]) throw std::invalid_argument("net: layers do not fit");
      layers.push_back({at(n[0]), n[1], at(n[2]), n[3], n[4], ints(n[5]), ints(n[6]), ints(n[7]), at(n[8]), n[9],
                        at(n[10]), n[11], at(n[12]), at(n[13]), at(n[14]), at(n[15]), at(n[16])});
    }
    spec = {layers.data(), int(layers.size()), residual, Activation(activation), Activation(last)};
  }
  NetLayers(const NetLayers&) = delete;  // spec points into layers
};

}  // namespace fk
