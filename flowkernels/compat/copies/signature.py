"""What the parameters of a function say about it: whether it may be a copy of nflows' spline, and how it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# role → what copies call it, once what marks it as raw is taken off
_NAMES = {
    "inputs": "inputs input x y z",
    "widths": "widths width w bin_widths",
    "heights": "heights height h bin_heights",
    "derivatives": "derivatives derivative derivs deriv d slopes slope deltas",
    "inverse": "inverse reverse",
    "tails": "tails",
    "tail_bound": "tail_bound tailbound tail bound b",
    "left": "left",
    "right": "right",
    "bottom": "bottom",
    "top": "top",
    "lower": "lower",
    "upper": "upper",
    "bins": "num_bins n_bins bins k",
    "min_bin_width": "min_bin_width min_width rel_min_bin_width",
    "min_bin_height": "min_bin_height min_height rel_min_bin_height",
    "min_derivative": "min_derivative min_deriv min_slope min_delta",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
_RAW = ("unnormalized_", "unnormalised_", "un_normalized_", "unnorm_", "raw_", "u_")
LOGITS = ("widths", "heights", "derivatives")
_MUST_HAVE = ("inputs", *LOGITS)
_HINTS = ("rqs", "spline", "quadratic")  # in a name; without, single letters for parameters say too little
_PLAIN = (bool, int, float, str, type(None))


class Signature(NamedTuple):
    """How a function is called that takes what nflows' spline takes."""

    positional: tuple[str, ...]
    roles: Mapping[str, str]  # parameter → role, of those that have one
    defaults: Mapping[str, Any]  # role → value
    others: Mapping[str, Any]  # parameter without a role → its default

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """role → value of a call, or None: it is for the function itself, be it only to raise."""
        if len(args) > len(self.positional):
            return None
        values = dict(self.defaults)
        given = dict(zip(self.positional[: len(args)], args, strict=True))  # compilers know no zip of unequal ones
        for name, value in (*given.items(), *kwargs.items()):
            if name in kwargs and name in given:
                return None
            if name in self.roles:
                values[self.roles[name]] = value
            elif name not in self.others or not _is_default(value, self.others[name]):
                return None
        return values if all(role in values for role in self.roles.values()) else None

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The call with these values, the other way round."""
        named = {name: values[role] for name, role in self.roles.items() if role in values}
        args = []
        for name in self.positional:
            if name not in named:
                break
            args.append(named.pop(name))
        return args, named


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, _PLAIN) and type(value) is type(default) and value == default)


def _role(name: str) -> str | None:
    name = name.lower().removesuffix("_logits")
    for mark in _RAW:
        name = name.removeprefix(mark)
    return _ROLES.get(name)


def _may_be(name: str, roles: Mapping[str, str]) -> bool:
    by_role = {role: parameter for parameter, role in roles.items()}
    if not all(role in by_role for role in _MUST_HAVE):
        return False
    if any(hint in name.lower() for hint in _HINTS) or all(len(by_role[role]) > 1 for role in LOGITS):
        return True
    return "inverse" in by_role and not by_role.keys().isdisjoint({"tail_bound", "left", "lower"})


@functools.lru_cache(maxsize=1024)
def signature_of(function: Callable[..., Any]) -> Signature | str | None:
    """How a function is called, why one that looks like a spline is none that is known, or None: it looks like none."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except Exception:  # what it says of itself is nonsense
        return None
    roles = {p.name: role for p in parameters if (role := _role(p.name)) is not None}
    name = getattr(function, "__name__", "")
    if not _may_be(name, roles):
        return None
    if len(set(roles.values())) < len(roles):
        return f"two parameters of its {name} mean the same"
    rest = [p for p in parameters if p.name not in roles and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for p in rest:
        if p.default is p.empty:
            return f"its {name} has the parameter {p.name}, which nflows' spline has not"
    return Signature(
        tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
        roles,
        {roles[p.name]: p.default for p in parameters if p.name in roles and p.default is not p.empty},
        {p.name: p.default for p in rest},
    )
