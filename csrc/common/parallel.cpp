#include "parallel.h"

#include <exception>
#include <new>

#if defined(FK_LIBGOMP)
extern "C" {
void GOMP_parallel(void (*f)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
}
#endif

namespace fk {
namespace {

std::exception_ptr no_memory;  // its address stands for an exception that there was no memory to keep

}  // namespace

void keep_exception(void** first) noexcept {
  auto* const kept = new (std::nothrow) std::exception_ptr(std::current_exception());
  void *expected = nullptr, *const given = kept ? kept : &no_memory;
  if (!__atomic_compare_exchange_n(first, &expected, given, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) delete kept;
}

void rethrow_exception(void* first) {
  if (first == &no_memory) throw std::bad_alloc();
  auto* const kept = static_cast<std::exception_ptr*>(first);
  const std::exception_ptr exception = *kept;
  delete kept;
  std::rethrow_exception(exception);
}

#if defined(FK_LIBGOMP)
void run_parts(int64_t parts, void (*f)(const void* data, int64_t i), const void* data) {
  struct Call {
    int64_t parts;
    void (*f)(const void*, int64_t);
    const void* data;
  } call = {parts, f, data};
  const auto mine = [](void* p) {
    const Call& c = *static_cast<const Call*>(p);
    for (int64_t i = omp_get_thread_num(); i < c.parts; i += omp_get_num_threads()) c.f(c.data, i);
  };
  GOMP_parallel(mine, &call, unsigned(parts), 0);
}
#endif

}  // namespace fk
