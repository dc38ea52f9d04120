// Cuts a buffer into arrays.
#pragma once
#include <stddef.h>

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
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace fk::FK_ISA
