// Splits work over torch's OpenMP pool. The thread count comes from torch on every call.
#pragma once
#include <stdint.h>
#include <exception>

namespace fk {

// Carries the first exception of several threads to the one that waits for them: what leaves a parallel region any
// other way ends the process.
class FirstException {
 public:
  template <class F>
  void watch(const F& f) noexcept {
    try {
      f();
    } catch (...) {
      if (!__atomic_exchange_n(&caught_, true, __ATOMIC_RELAXED)) first_ = std::current_exception();
    }
  }
  // Once all threads are done.
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::exception_ptr first_;
  bool caught_ = false;
};

// True in a child of fork(): its copy of the OpenMP pool has no threads behind it and a
// parallel region would wait for them for ever.
bool in_forked_child();

// Calls f(begin, end) on disjoint ranges that cover [0, n). At most `threads` ranges, none
// shorter than `grain` unless it is the only one. One range runs with no OpenMP call at all. Throws what f threw first;
// the other ranges are done all the same.
template <class F>
void parallel_for(int64_t n, int64_t grain, int threads, const F& f) {
  int64_t parts = grain > 0 ? n / grain : n;
  if (parts > threads) parts = threads;
  if (parts <= 1 || in_forked_child()) {
    f(int64_t(0), n);
    return;
  }
  FirstException exception;
#pragma omp parallel for num_threads(int(parts)) schedule(static, 1)
  for (int64_t i = 0; i < parts; ++i) exception.watch([&] { f(n * i / parts, n * (i + 1) / parts); });
  exception.rethrow();
}

}  // namespace fk
