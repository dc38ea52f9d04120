// The tail of the normal distribution, by one thread of a GPU.
#pragma once
#include "scalar.cuh"

#include "normal_tail.h"

namespace fk::cuda {

template <class S>
FK_INLINE NormalTail<S> normal_tail(S v) {
  constexpr double kErfc[26] = {FK_ERFC};
  return normal_tail(v, kErfc);
}

}  // namespace fk::cuda
