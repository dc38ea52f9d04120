// Splits work over torch's OpenMP pool. The thread count comes from torch on every call.
#pragma once
#include <stdint.h>

namespace fk {

// True in a child of fork(): its copy of the OpenMP pool has no threads behind it and a
// parallel region would wait for them for ever.
bool in_forked_child();

// Calls f(begin, end) on disjoint ranges that cover [0, n). At most `threads` ranges, none
// shorter than `grain` unless it is the only one. One range runs with no OpenMP call at all.
template <class F>
void parallel_for(int64_t n, int64_t grain, int threads, const F& f) {
  int64_t parts = grain > 0 ? n / grain : n;
  if (parts > threads) parts = threads;
  if (parts <= 1 || in_forked_child()) {
    f(int64_t(0), n);
    return;
  }
#pragma omp parallel for num_threads(int(parts)) schedule(static, 1)
  for (int64_t i = 0; i < parts; ++i) f(n * i / parts, n * (i + 1) / parts);
}

}  // namespace fk
