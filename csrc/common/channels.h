// A tensor as ops on channels see it: images of pixels of channels, in any order in memory.
#pragma once
#include <stdint.h>
#include <array>

namespace fk {

// Strides in elements. Rows of features are the pixels of one image.
struct Channels {
  void* data;
  int64_t image, channel, pixel;
};

// The same as Python lists it: address (0: absent), strides of image, channel and pixel.
using ChannelNumbers = std::array<int64_t, 4>;

inline Channels channels_of(const ChannelNumbers& n) {
  return {reinterpret_cast<void*>(uintptr_t(n[0])), n[1], n[2], n[3]};
}

}  // namespace fk
