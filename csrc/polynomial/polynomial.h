// Launchers of the polynomial maps on raw pointers. No torch, no Python.
#pragma once
#include <vector>

#include "../common/cuda_stream.h"
#include "../univariate/asked.h"
#include "../univariate/map_args.h"

namespace fk {

// Everything about a polynomial but its data; built and checked once per distinct setting.
struct PolynomialSpec {
  static constexpr int kMaxNodes = 16, kMaxTerms = 32, kMaxSteps = 70;

  bool of_squares;  // or a Bernstein polynomial
  int degree;       // of each squared polynomial; params - 1 of a Bernstein polynomial
  int terms;        // squares
  double bound;     // the unit of the squared polynomials, or half of the box
  double slope;     // the least one, of squares
  double centre;    // the squared polynomials where all coefficients are 0
  double weight;    // that of each square
  bool shift;       // the last parameter is added
  bool bounded;     // the inverse of squares stops at -bound and bound
  bool linear_tails;
  double edge;  // where tails begin, as a share of the box
  bool inverse;
  double nodes[kMaxNodes], weights[kMaxNodes];  // degree + 1 of a quadrature on [0, 1]

  int params() const { return of_squares ? terms * (degree + 1) + shift : degree + 1; }
  // The degree of a Bernstein polynomial: the params' steps, and those that its ends have.
  int steps() const { return params() + (linear_tails ? 1 : 4); }
};

PolynomialSpec polynomial_spec(bool of_squares, int degree, int terms, double bound, double slope, double centre,
                               double weight, bool shift, bool bounded, bool linear_tails, double edge, bool inverse,
                               const std::vector<double>& nodes, const std::vector<double>& weights);

// What fused layers ask.
// Coefficients of a point on the way to gradients; or steps, those from the nearer end, and their sums.
inline int shared_numbers(const PolynomialSpec& s) { return s.of_squares ? s.degree + 2 : 3 * s.steps(); }

void polynomial_fwd(const PolynomialSpec&, const MapArgs&, int threads);
void polynomial_bwd(const PolynomialSpec&, const MapArgs&, int threads);
void polynomial_fwd(const PolynomialSpec&, const MapArgs&, const CudaStream&);
void polynomial_bwd(const PolynomialSpec&, const MapArgs&, const CudaStream&);

}  // namespace fk
