// What torch says of a tensor, and what an entry point may ask of it before a kernel is given its address. Every size,
// stride and type that a kernel relies on is checked here, against the tensors themselves: Python's checks say it
// better, these make it true.
#pragma once
#include <stdint.h>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "tensor.h"

namespace fk {

// A tensor, or none. Its numbers are torch's own (view_caster.h), never what somebody expects of it. Copying copies
// room for every dim: pass it by reference.
struct View {
  static constexpr int kMaxDims = 64;  // torch's
  void* data;                          // null: no tensor, or one without elements
  DType type;
  int ndim;                                  // -1: no tensor
  int64_t size[kMaxDims], stride[kMaxDims];  // in elements

  View() : data(nullptr), type(DType::other), ndim(-1) {}
  bool given() const { return ndim >= 0; }
  int64_t count() const {  // -1: more than a number can say
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i)
      if (__builtin_mul_overflow(n, size[i], &n)) return -1;
    return n;
  }
};

inline std::string text_of(const int64_t* numbers, int n) {
  std::string text = "[";
  for (int i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + "]";
}

inline const char* name_of(DType type) {
  switch (type) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
    case DType::bytes: return "bool or uint8";
    default: return "another dtype";
  }
}

// Name, contract, what was given.
[[noreturn]] inline void refuse(const std::string& name, const std::string& contract, const std::string& given) {
  throw std::invalid_argument(name + " must be " + contract + ", got " + given);
}

// An integer from low to high.
inline void check_number(const char* name, int64_t given, int64_t low, int64_t high) {
  if (given < low || given > high)
    refuse(name, "from " + std::to_string(low) + " to " + std::to_string(high), std::to_string(given));
}

// The product of sizes, none negative, which kernels compute in 64 bits.
inline int64_t checked_product(const char* name, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t f : factors)
    if (f < 0 || __builtin_mul_overflow(product, f, &product))
      refuse(name, "a product of sizes below 2**63", text_of(factors.begin(), int(factors.size())));
  return product;
}

inline void check_given(const char* name, const View& v) {
  if (!v.given()) refuse(name, "a tensor", "None");
}

inline void check_type(const char* name, const View& v, DType type) {
  if (v.type != type) refuse(name, name_of(type), name_of(v.type));
}

// Of these sizes; an address, if it has elements; no stride that leads backwards.
inline void check_sizes(const char* name, const View& v, std::initializer_list<int64_t> sizes) {
  bool fits = v.ndim == int(sizes.size()), empty = false;
  for (int i = 0; fits && i < v.ndim; ++i) {
    fits = v.size[i] == sizes.begin()[i];
    empty |= v.size[i] == 0;
  }
  if (!fits) refuse(name, text_of(sizes.begin(), int(sizes.size())), text_of(v.size, v.ndim < 0 ? 0 : v.ndim));
  for (int i = 0; i < v.ndim; ++i)
    if (v.stride[i] < 0) refuse(name, "of strides from 0 on", text_of(v.stride, v.ndim));
  if (!v.data && !empty) refuse(name, "in memory", "a null data pointer");
}

// One element after the other, as those that a kernel writes: sizes of 1 have no stride that counts.
inline bool is_contiguous(const View& v) {
  int64_t expected = 1;
  bool dense = true;
  for (int i = v.ndim - 1; i >= 0; --i) {
    if (v.size[i] == 0) return true;
    dense &= v.size[i] == 1 || v.stride[i] == expected;
    expected *= v.size[i];
  }
  return dense;
}

// A tensor of this type and these sizes without gaps.
inline void check_contiguous(const char* name, const View& v, DType type, std::initializer_list<int64_t> sizes) {
  check_given(name, v);
  check_type(name, v, type);
  check_sizes(name, v, sizes);
  if (!is_contiguous(v)) refuse(name, "contiguous", "strides " + text_of(v.stride, v.ndim));
}

// The same of any shape with so many elements: for tensors that have leading dims where kernels have rows.
inline void check_dense(const char* name, const View& v, DType type, int64_t count) {
  check_given(name, v);
  check_type(name, v, type);
  if (v.count() != count) refuse(name, "of " + std::to_string(count) + " elements", text_of(v.size, v.ndim));
  if (!v.data && count) refuse(name, "in memory", "a null data pointer");
  if (!is_contiguous(v)) refuse(name, "contiguous", "strides " + text_of(v.stride, v.ndim));
}

// As check_contiguous, of a matrix whose rows may lie anywhere; each without gaps.
inline void check_rows(const char* name, const View& v, DType type, int64_t rows, int64_t columns) {
  check_given(name, v);
  check_type(name, v, type);
  check_sizes(name, v, {rows, columns});
  if (columns > 1 && v.stride[1] != 1) refuse(name, "of rows without gaps", "strides " + text_of(v.stride, v.ndim));
}

}  // namespace fk
