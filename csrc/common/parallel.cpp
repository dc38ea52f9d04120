#include "parallel.h"

#include <exception>
#include <new>

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

}  // namespace fk
