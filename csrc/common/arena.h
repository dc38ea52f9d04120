// Cuts a buffer into arrays.
#pragma once
#include <stddef.h>
#include <string.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "workspace.h"

#ifndef FK_ISA
#error "FK_ISA must name the instruction set this file is compiled for"
#endif

namespace fk::FK_ISA {

// Hands out parts of a buffer; with a null base it only counts what it would hand out.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(size_t count) {
    char* p = base_ + used_;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
#if defined(__SANITIZE_ADDRESS__)
    // Arrays of one buffer are neighbours that AddressSanitizer cannot tell apart: a gap it can see follows each, and
    // what nobody has written is NaN.
    constexpr size_t kGap = 256;
    used_ += kGap;
    if (base_) {
      __asan_unpoison_memory_region(p, count * sizeof(T));
      memset(static_cast<void*>(p), 0xff, count * sizeof(T));
      __asan_poison_memory_region(p + count * sizeof(T), size_t(base_ + used_ - p) - count * sizeof(T));
    }
#endif
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }
  bool counts() const { return !base_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// A value in the arena, made of these and the arena itself; only counted where nothing is laid out yet.
template <class T, class... A>
T* placed(Arena& arena, const A&... given) {
  T* const at = arena.take<T>(1);
  const T made(given..., arena);
  if (!arena.counts()) memcpy(static_cast<void*>(at), &made, sizeof made);
  return at;
}

// What `build(arena)` makes, in this thread's own scratch memory. Called twice: once to count.
template <class F>
auto in_scratch(Scratch purpose, const F& build) {
  Arena counted(nullptr);
  build(counted);
  Arena arena(workspace(purpose, counted.used()));
  return build(arena);
}

}  // namespace fk::FK_ISA
