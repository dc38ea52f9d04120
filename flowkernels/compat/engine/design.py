"""Which reasons for leaving a module alone are no loss: on a permutation, say, nothing could be gained."""

from __future__ import annotations


class ByDesign(str):
    """A reason that is no loss.

    Example:
        >>> reason = ByDesign("a permutation is one copy")
        >>> reason == "a permutation is one copy", is_by_design(reason), is_by_design("it has batch norm")
        (True, True, False)
    """

    __slots__ = ()


_SCALE = "one multiplication and one addition, and nothing is gained on it"
_COPY = "at most one copy, and nothing is gained on it"
# Name of a class that is in no library's table → why nothing is gained on it.
_CHEAP = {
    "PointwiseAffineTransform": _SCALE,  # with which sbi standardises
    "IdentityTransform": "it does nothing",
    "SqueezeTransform": _COPY,
    # FrEIA's
    "Split": _COPY,
    "Concat": _COPY,
    "Flatten": _COPY,
    "Reshape": _COPY,
    # Pyro's and torch's own, which may stand in a list of transforms and are no modules
    "Permute": _COPY,
    "AffineTransform": _SCALE,
    "ReshapeTransform": _COPY,
}
# zuko's wrapper of a transform without a network → the transforms on which nothing is gained.
_WRAPPED = {"AffineTransform": _SCALE, "MonotonicAffineTransform": _SCALE, "PermutationTransform": _COPY}
# Classes of a library's `left_alone` on which something could be gained: no kernel computes them.
_LOSSES = {"GINCouplingBlock", "RationalQuadraticSpline", "ElementwiseRationalQuadraticSpline"}


def listed(class_name: str, reason: str) -> str:
    """The reason of a library's `left_alone`, as one that is no loss where it is none."""
    return reason if class_name in _LOSSES else ByDesign(reason)


def cheap(part: object) -> ByDesign | None:
    """Why nothing is gained on a transform that is in no table, or None."""
    if type(part).__name__ == "UnconditionalTransform":
        wrapped = getattr(getattr(part, "f", None), "__name__", "")
        return ByDesign(_WRAPPED[wrapped]) if wrapped in _WRAPPED else None
    for cls in type(part).__mro__:
        if cls.__name__ in _CHEAP:
            return ByDesign(_CHEAP[cls.__name__])
    return None


def is_by_design(reason: str) -> bool:
    return isinstance(reason, ByDesign)
