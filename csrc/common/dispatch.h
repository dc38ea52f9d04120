// Declares one table of kernels per instruction set and picks the running one:
//   FK_KERNELS(RqsKernels, rqs_kernels)   then   rqs_kernels().fwd(...)
#pragma once
#include "isa.h"

#if defined(__x86_64__) && !defined(FK_BASELINE_ONLY)
#define FK_KERNELS(Type, name)               \
  namespace baseline {                       \
  extern const Type name;                    \
  }                                          \
  namespace avx2 {                           \
  extern const Type name;                    \
  }                                          \
  namespace avx512 {                         \
  extern const Type name;                    \
  }                                          \
  static const Type& name() {                \
    switch (isa()) {                         \
      case Isa::avx512: return avx512::name; \
      case Isa::avx2: return avx2::name;     \
      default: return baseline::name;        \
    }                                        \
  }
#else
#define FK_KERNELS(Type, name) \
  namespace baseline {         \
  extern const Type name;      \
  }                            \
  static const Type& name() { return baseline::name; }
#endif
