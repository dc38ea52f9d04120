"""Functions that Triton kernels share: float32 by our own formulas where Triton's are too rough, float64 by Triton's.

`tl.exp` of a float32 rounds x log2 e before it takes the power, an error that grows with |x|; log1p and tanh exist in
libdevice only, which the interpreter has not.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _reduced(x):
    """x = n log 2 + f as 2^n and log2 e^f. log 2 comes in two parts, the first of few digits: n times it is exact."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    f = (x - n * 0.693359375) + n * 2.12194440e-4
    return n, f * 1.4426950408889634


@triton.jit
def exp(x):
    """Of a float32, 2 ulp from -126 log 2 on; 0 and inf come out as 0 and inf."""
    if x.dtype == tl.float64:
        out = tl.exp(x)
    else:
        n, f = _reduced(x)
        half = tl.floor(n * 0.5)  # in two steps, as 2^n alone leaves the range before its product does
        out = tl.exp2(f) * tl.exp2(half) * tl.exp2(n - half)
        out = tl.where(x < -104.0, 0.0, tl.where(x > 89.0, float("inf"), out))
    return out


@triton.jit
def product(x, y):
    """x y, rounded, for a sum over lanes. A compiler may put a product into the first addition behind it; each lane has
    another one in it then, and so other bits of one sum, and which of them is stored is anybody's guess."""
    out = x * y
    return tl.where(out == out, out, float("nan"))


@triton.jit
def exp_nonpositive(x):
    """exp(x) for x <= 0, not below the smallest normal number. A comparison, as a maximum would lose a NaN."""
    if x.dtype == tl.float64:
        out = tl.exp(tl.where(x < -708.0, -708.0, x))
    else:
        n, f = _reduced(tl.where(x < -87.0, -87.0, x))
        out = tl.exp2(f) * tl.exp2(n)
    return out


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1]: what rounding 1 + e takes from the logarithm is given back as a factor."""
    u = 1.0 + e
    d = u - 1.0
    return tl.where(d == 0.0, e, tl.log(u) * (e / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p_unit(exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """From the smaller of the two exponentials, so that neither end cancels."""
    e = exp(-tl.abs(x))
    q = 1.0 / (1.0 + e)
    return tl.where(x >= 0.0, q, e * q)


@triton.jit
def tanh(x):
    """Below 1 by a continued fraction, which does not cancel; its slope is 1 - tanh^2."""
    a = tl.abs(x)
    e = exp(-2.0 * a)
    t = tl.minimum(a, 1.0) * tl.minimum(a, 1.0)
    num = 218243025.0 + t * (16081065.0 + t * (289575.0 + t * (1430.0 + t)))
    den = 654729075.0 + t * (310134825.0 + t * (18918900.0 + t * (315315.0 + t * (1485.0 + t))))
    near = a - a * (t * (num / den))
    r = tl.where(a < 1.0, near, 1.0 - 2.0 * e / (1.0 + e))
    return tl.where(x != x, x, tl.where(x < 0.0, -r, r))


@triton.jit
def atan(x):
    """k pi/4 + atan z with |z| <= tan(pi/8), by a minimax polynomial."""
    a = tl.abs(x)
    above = a > 2.414213562373095
    between = a > 0.4142135623730951
    n = tl.where(above, -1.0, tl.where(between, a - 1.0, a))
    d = tl.where(above, a, tl.where(between, a + 1.0, 1.0))
    z = n / d
    t = z * z
    q = 0.01851526955311175759 * t - 0.03864194506625078982
    q = q * t + 0.05062982471442553423
    q = q * t - 0.05853375919788237233
    q = q * t + 0.06663893074794469968
    q = q * t - 0.07692133011180409623
    q = q * t + 0.0909090205878555861
    q = q * t - 0.1111111094092563938
    q = q * t + 0.1428571428351381269
    q = q * t - 0.1999999999998817434
    q = q * t + 0.3333333333333332139
    k = tl.where(above, 2.0, tl.where(between, 1.0, 0.0)).to(x.dtype)
    r = k * 0.78539816339744830962 + (z - z * (t * q))
    return tl.where(x != x, x, tl.where(x < 0.0, -r, r))
