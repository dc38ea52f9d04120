// What an entry point asks of tensors that have to be like one another: checks of view.h, for any number of dims.
#pragma once
#include "view.h"

namespace fk {

inline bool is_kernel_type(DType type) { return DType::f32 <= type && type <= DType::f16; }
// What is computed in: float, or double for double. (Python's `wide`.)
inline DType wide_type(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }
inline int64_t bytes_of_type(DType type) {
  return type == DType::f64 || type == DType::i64   ? 8
         : type == DType::f32 || type == DType::i32 ? 4
         : type == DType::bytes                     ? 1
                                                    : 2;
}

inline std::string sizes_of(const View& v) { return text_of(v.size, v.ndim < 0 ? 0 : v.ndim); }
inline std::string strides_of(const View& v) { return text_of(v.stride, v.ndim < 0 ? 0 : v.ndim); }

// A tensor of numbers that kernels know, as torch describes one: no negative size, sizes whose product is a number, no
// stride that leads backwards, and an address if there are elements.
inline void check_storage(const char* name, const View& v) {
  check_given(name, v);
  int64_t n = 1;
  for (int i = 0; i < v.ndim; ++i) {
    if (v.size[i] < 0 || __builtin_mul_overflow(n, v.size[i], &n))
      refuse(name, "of sizes whose product is below 2**63", sizes_of(v));
    if (v.stride[i] < 0) refuse(name, "of strides from 0 on", strides_of(v));
  }
  if (!v.data && n > 0) refuse(name, "in memory", "a null data pointer");
}

inline void check_input(const char* name, const View& v) {
  check_storage(name, v);
  if (!is_kernel_type(v.type)) refuse(name, "float32, float64, bfloat16 or float16", name_of(v.type));
}

// Parameters beside x: of its type, or of 16 bits beside float32.
inline void check_params_type(const char* name, const View& params, DType x) {
  const bool mixed = x == DType::f32 && (params.type == DType::bf16 || params.type == DType::f16);
  if (params.type != x && !mixed) refuse(name, std::string("of the type of x, ") + name_of(x), name_of(params.type));
}

// Of the first `n` of these sizes, and `more` after them where that is not negative.
inline void check_sizes_like(const char* name, const View& v, const int64_t* sizes, int n, int64_t more = -1) {
  const int ndim = n + (more >= 0);
  bool fits = v.ndim == ndim;
  for (int i = 0; fits && i < n; ++i) fits = v.size[i] == sizes[i];
  if (fits && more >= 0) fits = v.size[n] == more;
  if (fits) return;
  std::string wanted = text_of(sizes, n);
  if (more >= 0) wanted = wanted.substr(0, wanted.size() - 1) + (n ? ", " : "") + std::to_string(more) + "]";
  refuse(name, wanted, sizes_of(v));
}

inline void check_contiguous_like(const char* name, const View& v, DType type, const int64_t* sizes, int n,
                                  int64_t more = -1) {
  check_storage(name, v);
  check_type(name, v, type);
  check_sizes_like(name, v, sizes, n, more);
  if (!is_contiguous(v)) refuse(name, "contiguous", "strides " + strides_of(v));
}

// The same of what may be absent.
inline void check_contiguous_or_none(const char* name, const View& v, DType type, const int64_t* sizes, int n,
                                     int64_t more = -1) {
  if (v.given()) check_contiguous_like(name, v, type, sizes, n, more);
}

// A tensor that is written to: no two elements at one place, as far as strides of 0 tell.
inline void check_writable(const char* name, const View& v) {
  for (int i = 0; i < v.ndim; ++i)
    if (v.size[i] > 1 && v.stride[i] == 0) refuse(name, "one place an element", "strides " + strides_of(v));
}

}  // namespace fk
