"""The scales of the affine map: the one table of their names, and of which settings each takes."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """One scale s(u). What s is stands in `reference`, csrc/affine/affine_math.h and `triton_kernels`."""

    name: str
    formula: str  # as `ops.affine` documents it
    clamped: bool = False  # has bounds, by the setting ``clamp``
    floored: bool = False  # has a floor, by the setting ``min_scale``


# In the order of enum AffineScale, csrc/affine/affine.h.
TABLE = (
    Scale("exp", r"e^u"),
    Scale("softplus", r"\mathrm{softplus}(u)", floored=True),
    Scale("sigmoid", r"\sigma(u + 2)", floored=True),
    Scale("tanh", r"e^{c \tanh(u/c)}", clamped=True),
    Scale("additive", "1"),
    Scale("soft_clip", r"e^{u/(1 + |u/c|)}", clamped=True),
    Scale("clip", r"e^{\mathrm{clip}(u)}"),
    Scale("reciprocal_sigmoid", r"1/\sigma(u + 2)"),
    Scale("atan", r"e^{r \arctan(u/r)}", clamped=True),
)
SCALES = tuple(scale.name for scale in TABLE)
CLAMPED = tuple(scale.name for scale in TABLE if scale.clamped)
FLOORED = tuple(scale.name for scale in TABLE if scale.floored)
RENAMED = {"per_sigmoid": "reciprocal_sigmoid"}  # old spellings, for one release
