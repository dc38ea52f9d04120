// A tensor as ops on channels see it: images of pixels of channels, in any order in memory.
#pragma once
#include <stdint.h>

namespace fk {

// Strides in elements. Rows of features are the pixels of one image.
struct Channels {
  void* data;
  int64_t image, channel, pixel;
};

}  // namespace fk
