// A univariate map, of one feature at a time: what a fused layer applies to features with the parameters that its
// network returns. No torch, no Python.
#pragma once
#include "../affine/affine.h"
#include "../mixture/mixture.h"
#include "../polynomial/polynomial.h"
#include "../rqs/rqs.h"
#include "asked.h"

// do_(kind, type of the settings) of each map. One more is its header above and a line here; on a GPU one in
// map_cuda.cuh.
#define FK_MAPS(do_) do_(affine, AffineSpec) do_(mixture, MixtureSpec) do_(polynomial, PolynomialSpec) do_(rqs, RqsSpec)

namespace fk {

#define FK_MAP_KIND(kind, Spec) kind,
enum class MapKind { FK_MAPS(FK_MAP_KIND) };
#undef FK_MAP_KIND

// The settings of one of them, and which.
class UnivariateMap {
 public:
#define FK_MAP_FROM(kind, Spec)                                                                           \
  explicit UnivariateMap(const Spec& s) : kind_(MapKind::kind), params_(s.params()), kind##_settings(s) { \
    check_each_feature(s);                                                                                \
  }
  FK_MAPS(FK_MAP_FROM)
#undef FK_MAP_FROM
  UnivariateMap() : kind_(MapKind::affine), params_(0), affine_settings() {}

  int params() const { return params_; }

  // f(settings), each in a type of its own.
  template <class F>
  __attribute__((always_inline)) auto visit(const F& f) const {
#define FK_MAP_CASE(kind, Spec) \
  if (kind_ == MapKind::kind) return f(kind##_settings);
    FK_MAPS(FK_MAP_CASE)
#undef FK_MAP_CASE
    __builtin_unreachable();
  }

  // Throws where the map has no numbers in the type of its layer.
  void check(DType type) const {
    visit([&](const auto& spec) { check_numbers(spec, type); });
  }

 private:
  MapKind kind_;
  int params_;
  union {
#define FK_MAP_SETTINGS(kind, Spec) Spec kind##_settings;
    FK_MAPS(FK_MAP_SETTINGS)
#undef FK_MAP_SETTINGS
  };
};

}  // namespace fk
