// A tensor as ops on channels see it: images of pixels of channels, in any order in memory.
#pragma once
#include <stdint.h>

#include "view_like.h"

namespace fk {

// Strides in elements. Rows of features are the pixels of one image.
struct Channels {
  void* data;
  int64_t image, channel, pixel;
};

// Which dim of x the channels are: -1, of x [..., C], or 1, of x [N, C, ...]; and what follows from the sizes.
struct ChannelShape {
  int dim;
  int64_t images, pixels, channels;
  int64_t ladj_count, ladj_pixels;  // entries of ladj, and pixels of each

  int lead(const View& x) const { return dim == 1 ? 1 : x.ndim - 1; }  // dims of ladj, x's first ones
};

inline ChannelShape channel_shape(const char* name, const View& x, int dim) {
  if (dim != -1 && dim != 1) refuse("channel_dim", "-1 or 1", std::to_string(dim));
  check_input(name, x);
  if (x.ndim < (dim == 1 ? 2 : 1)) refuse(name, dim == 1 ? "[N, C, ...]" : "[..., C]", sizes_of(x));
  if (x.count() == 0) refuse(name, "not empty", sizes_of(x));
  ChannelShape s = {dim, 1, 1, x.size[dim == 1 ? 1 : x.ndim - 1], 1, 1};
  for (int i = 0; i < x.ndim; ++i) {
    if (dim == -1 && i < x.ndim - 1) s.pixels *= x.size[i];
    if (dim == 1 && i > 1) s.pixels *= x.size[i];
  }
  if (dim == 1) s.images = x.size[0];
  s.ladj_count = dim == 1 ? s.images : s.pixels;
  s.ladj_pixels = dim == 1 ? s.pixels : 1;
  return s;
}

// How a tensor of x's sizes is walked: pixels of an image at even distances, and pixels or channels side by side.
inline Channels channels_of(const char* name, const View& t, const View& x, const ChannelShape& s, DType type) {
  check_storage(name, t);
  check_type(name, t, type);
  check_sizes_like(name, t, x.size, x.ndim);
  const int first = s.dim == 1 ? 2 : 0, end = s.dim == 1 ? t.ndim : t.ndim - 1,
            channel_dim = s.dim == 1 ? 1 : t.ndim - 1;
  int64_t pixel = -1, expected = -1;  // the pixels' dims as one: sizes of 1 have no say
  bool even = true;
  for (int i = end - 1; i >= first; --i) {
    if (t.size[i] == 1) continue;
    even &= expected < 0 || t.stride[i] == expected;
    if (pixel < 0) pixel = t.stride[i];
    expected = t.size[i] * t.stride[i];
  }
  const int64_t image = s.dim == 1 ? t.stride[0] : 0;
  int64_t channel = t.stride[channel_dim];
  if (s.channels == 1) channel = s.dim == 1 && pixel == 1 ? 0 : 1;            // it has no neighbours
  if (pixel < 0) pixel = channel != 1 ? 1 : s.dim == 1 ? image : s.channels;  // one pixel: the next is the next image's
  if (!even || (channel != 1 && pixel != 1))
    refuse(name, "of pixels at even distances, with pixels or channels side by side", "strides " + strides_of(t));
  return {t.data, image, channel, pixel};
}

}  // namespace fk
