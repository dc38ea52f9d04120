// Splits work over torch's OpenMP pool. The thread count comes from torch on every call.
#pragma once
#include <stdint.h>
#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#endif

namespace fk {

// What leaves a parallel region as an exception ends the process: one that is being handled is kept in *first instead,
// unless another was there before, and thrown again by the thread that waits for them all. Defined elsewhere, as the
// linker may give a file compiled for one instruction set inline functions that were compiled for another.
void keep_exception(void** first) noexcept;
[[noreturn]] void rethrow_exception(void* first);

#if defined(FK_LIBGOMP)
// f(data, i) for every i in [0, parts) on libgomp's pool, for compilers whose OpenMP is another one.
void run_parts(int64_t parts, void (*f)(const void* data, int64_t i), const void* data);
#endif

// True in a child of fork(): its copy of the OpenMP pool has no threads behind it and a
// parallel region would wait for them for ever.
bool in_forked_child();

// Multiply-adds worth a thread of their own.
constexpr int64_t kGrainWork = 200000;

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
  void* first = nullptr;
  const auto part = [&](int64_t i) {
    try {
      f(n * i / parts, n * (i + 1) / parts);
    } catch (...) { keep_exception(&first); }
  };
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not see how libgomp's threads wait for each other.
  std::vector<std::thread> pool;
  for (int64_t i = 0; i < parts; ++i) pool.emplace_back(part, i);
  for (auto& thread : pool) thread.join();
#elif defined(FK_LIBGOMP)
  run_parts(parts, [](const void* p, int64_t i) { (*static_cast<decltype(&part)>(p))(i); }, &part);
#else
#pragma omp parallel for num_threads(int(parts)) schedule(static, 1)
  for (int64_t i = 0; i < parts; ++i) part(i);
#endif
  if (first) rethrow_exception(first);
}

}  // namespace fk
