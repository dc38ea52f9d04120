// A univariate map, of one feature at a time: what a fused layer applies to features with the parameters that its
// network returns. No torch, no Python.
#pragma once
#include "../affine/affine.h"
#include "../rqs/rqs.h"

namespace fk {

struct UnivariateMap {
  bool is_affine;
  AffineSpec affine = {};  // this one,
  RqsSpec rqs = {};        // or that

  explicit UnivariateMap(const RqsSpec& s) : is_affine(false), rqs(s) {}
  explicit UnivariateMap(const AffineSpec& s) : is_affine(true), affine(s) {
    if (!s.each_feature())
      refuse("UnivariateMap: the affine map", "of each feature by itself", "one of a part or of several dims");
  }
  UnivariateMap() = default;

  // Throws where the map has no numbers in the type of its layer.
  void check(DType type) const {
    if (!is_affine) check_box(rqs, type == DType::f64);
  }
  int params() const { return is_affine ? affine.params() : rqs.params(); }
};

}  // namespace fk
