// The Runge-Kutta methods, as tables: x' = x + h sum b_i k_i, k_i = f(t + c_i h, x + h sum over j < i of a_ij k_j).
#pragma once
#include "ode_flow.h"

#ifndef FK_ISA
#error "FK_ISA must name the instruction set this file is compiled for"
#endif

namespace fk::FK_ISA {

constexpr int kMostStages = 6;

struct Tableau {
  int stages;
  double c[kMostStages], a[kMostStages][kMostStages], b[kMostStages];
};

inline constexpr Tableau kEuler = {1, {0}, {{0}}, {1}};
inline constexpr Tableau kRk4 = {
    4, {0, 0.5, 0.5, 1}, {{0}, {0.5}, {0, 0.5}, {0, 0, 1}}, {1. / 6, 1. / 3, 1. / 3, 1. / 6}};
inline constexpr Tableau kDopri5 = {6,
                                    {0, 1. / 5, 3. / 10, 4. / 5, 8. / 9, 1},
                                    {{0},
                                     {1. / 5},
                                     {3. / 40, 9. / 40},
                                     {44. / 45, -56. / 15, 32. / 9},
                                     {19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
                                     {9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656}},
                                    {35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84}};
// b less that of order 4, the slope behind the step last.
inline constexpr double kDopri5Error[kMostStages + 1] = {35. / 384 - 5179. / 57600,
                                                         0,
                                                         500. / 1113 - 7571. / 16695,
                                                         125. / 192 - 393. / 640,
                                                         -2187. / 6784 + 92097. / 339200,
                                                         11. / 84 - 187. / 2100,
                                                         -1. / 40};

inline const Tableau& tableau_of(OdeSolver solver) {
  return solver == OdeSolver::euler ? kEuler : solver == OdeSolver::rk4 ? kRk4 : kDopri5;
}

}  // namespace fk::FK_ISA
