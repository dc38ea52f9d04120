// The map of a feature on a GPU, by one thread, from the row of its parameters in shared memory. Forward may overwrite
// the row; backward leaves the gradient there, and returns that of the value.
#pragma once
#include "../affine/affine_map.cuh"
#include "../mixture/mixture_map.cuh"
#include "../polynomial/polynomial_map.cuh"
#include "../rqs/rqs_map.cuh"
#include "map.h"

namespace fk::cuda {

// f(the map), in a type of its own: with_map of its settings, in <map>_map.cuh.
template <class S, class F>
void by_map(const UnivariateMap& m, const F& f) {
  m.visit([&](const auto& spec) { with_map<S>(spec, f); });
}

}  // namespace fk::cuda
