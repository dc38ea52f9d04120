"""nflows on the fused kernels: what `accelerate` changes by design, and nflows' two spline functions, fused.

Where nflows refuses its input, these layers go on, so that no call has to read a tensor's values:

| input                                                      | nflows                     | here                  |
|------------------------------------------------------------|----------------------------|-----------------------|
| outside the box, `tails=None`                              | raises InputOutsideDomain  | y = x, ladj = 0       |
| inverse where rounding makes the discriminant negative     | AssertionError             | the root, at disc = 0 |
| a batch of no rows, splines                                | RuntimeError               | no rows               |
| float16 and bfloat16                                       | ladj in that type          | ladj in float32       |
| LU layers: another dtype than that of the weights          | RuntimeError               | the wider of the two  |
| LU layers under autocast                                   | products in its type       | in that of the inputs |
| scale logits above 20, MaskedAffineAutoregressiveTransform | softplus(u) = u            | softplus(u)           |

nflows also divides the conditioner's output by the root of its hidden width in place; here that is a setting of the
kernel, and the conditioner's output stays as it was.
"""

from __future__ import annotations

from .nflows_functions import patch_functions, rational_quadratic_spline, unconstrained_rational_quadratic_spline

__all__ = ["patch_functions", "rational_quadratic_spline", "unconstrained_rational_quadratic_spline"]
