// Which inputs the units of a layer see, as kernels read it; every entry is checked when it is made, once for all
// calls.
#pragma once
#include <array>
#include <vector>

#include "../common/view.h"

namespace fk {

// A permutation of 0 to n - 1; empty: nothing is permuted.
inline void check_order(const char* name, const std::vector<int32_t>& order, int64_t n) {
  if (order.empty()) return;
  std::vector<bool> seen(size_t(n), false);
  bool fits = int64_t(order.size()) == n;
  for (size_t i = 0; fits && i < order.size(); ++i) {
    fits = 0 <= order[i] && order[i] < n && !seen[size_t(order[i])];
    if (fits) seen[size_t(order[i])] = true;
  }
  if (!fits) refuse(name, "a permutation of 0 to " + std::to_string(n - 1), "one that is not");
}

class LayerMask {
 public:
  using Ints = std::vector<int32_t>;

  // Orders by degree, of inputs and outputs; limit: of the outputs by degree, how many of the ordered inputs each sees.
  // Kernels read what is here or, with `there`, copies of all three that lie on a device.
  LayerMask(int64_t n_inputs, Ints in, Ints out, Ints limits, const std::array<const View*, 3>* there = nullptr)
      : n_in(n_inputs),
        n_out(int64_t(limits.size())),
        in_(std::move(in)),
        out_(std::move(out)),
        limit_(std::move(limits)) {
    constexpr int64_t kMost = INT32_MAX;
    check_number("mask: n_in", n_in, 1, kMost);
    check_number("mask: the length of limit", n_out, 1, kMost);
    check_order("mask: in_order", in_, n_in);
    check_order("mask: out_order", out_, n_out);
    int32_t before = 0;
    for (int32_t seen : limit_) {
      if (seen < before || seen > n_in)
        refuse("mask: limit", "numbers from 0 to " + std::to_string(n_in) + " that never fall", std::to_string(seen));
      before = seen;
    }
    const Ints* const own[] = {&in_, &out_, &limit_};
    const int32_t** const read[] = {&in_order, &out_order, &limit};
    for (int i = 0; i < 3; ++i) {
      if (own[i]->empty()) continue;
      *read[i] = own[i]->data();
      if (!there) continue;
      check_contiguous("mask: an order or limit on the device", *(*there)[i], DType::i32, {int64_t(own[i]->size())});
      *read[i] = static_cast<const int32_t*>((*there)[i]->data);
    }
  }
  LayerMask(const LayerMask&) = delete;

  const int64_t n_in, n_out;
  const int32_t *in_order = nullptr, *out_order = nullptr, *limit = nullptr;  // null orders: nothing is permuted

 private:
  const Ints in_, out_, limit_;
};

}  // namespace fk
