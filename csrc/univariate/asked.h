// What fused layers ask of a map's settings, beside the number of its parameters. These are the answers of a map that
// has nothing to say; one that does overloads them, in the header of its settings.
#pragma once
#include "../common/tensor.h"

namespace fk {

// Of the x and y between which a map is more than a straight line.
struct MapBox {
  double left, right, bottom, top;
};

// Throws where the settings are not those of a map of each feature by itself.
template <class Spec>
void check_each_feature(const Spec&) {}

// Throws where the map has no numbers in the type of its layer.
template <class Spec>
void check_numbers(const Spec&, DType) {}

// Throws where the map has no kernel on a GPU.
template <class Spec>
void check_on_gpu(const Spec&) {}

// Numbers that a map works in, beside the parameters; of a thread of a GPU in shared memory.
template <class Spec>
int shared_numbers(const Spec&) {
  return 0;
}

// False where the map has no box.
template <class Spec>
bool box_of(const Spec&, MapBox*) {
  return false;
}

}  // namespace fk
