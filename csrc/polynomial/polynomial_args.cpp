// The settings of the polynomial maps, checked for what would corrupt memory.
#include "polynomial.h"

namespace fk {

PolynomialSpec polynomial_spec(bool of_squares, int degree, int terms, double bound, double slope, double centre,
                               double weight, bool shift, bool bounded, bool linear_tails, double edge, bool inverse,
                               const std::vector<double>& nodes, const std::vector<double>& weights) {
  using Spec = PolynomialSpec;
  check_number("PolynomialSpec: degree", degree, of_squares ? 0 : 1, of_squares ? Spec::kMaxNodes - 1 : 64);
  check_number("PolynomialSpec: terms", terms, 1, Spec::kMaxTerms);
  const size_t n = of_squares ? size_t(degree) + 1 : 0;
  if (nodes.size() != n || weights.size() != n)
    refuse("PolynomialSpec: nodes and weights", "degree + 1 = " + std::to_string(n),
           std::to_string(nodes.size()) + " and " + std::to_string(weights.size()));
  Spec s = {of_squares, degree,  terms,        bound, slope,   centre, weight,
            shift,      bounded, linear_tails, edge,  inverse, {},     {}};
  for (size_t i = 0; i < n; ++i) s.nodes[i] = nodes[i], s.weights[i] = weights[i];
  return s;
}

}  // namespace fk
