"""Runs a group of cases in a process of its own, stores its digests, compares them with those stored."""

from __future__ import annotations

import collections
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import case

ISA = "avx2"
GROUPS = {  # group -> module of this package, distributions whose versions enter
    "ops": ("of_ops", ()),
    "native": ("of_flows", ()),
    "nflows": ("of_libraries", ("nflows",)),
    "glasflow": ("of_libraries", ("glasflow",)),
    "normflows": ("of_libraries", ("normflows",)),
    "zuko": ("of_libraries", ("zuko",)),
    "freia": ("of_libraries", ("FrEIA",)),
    "pyro": ("of_libraries", ("pyro-ppl",)),
    "copies": ("of_libraries", ("nflows",)),
}
_ROOT, _STORED = Path(__file__).parents[2], Path(__file__).parent / "stored"
# What of torch rounds nothing, or one operation at a time: the same bits on every machine. A case that meets another
# operation of torch's is of kind "torch", since MKL and torch's vector functions differ from machine to machine.
_EXACT = frozenset(
    """
    _local_scalar_dense _reshape_alias _to_copy _unsafe_view abs add add_ alias arange as_strided as_strided_
    bitwise_and bitwise_not cat chunk clamp clamp_ clamp_min clone contiguous copy_ detach detach_ div double empty
    empty_like empty_strided eq expand expand_as fill_ flatten flip float full full_like gather ge gt index
    index_add_ index_copy index_put_ index_select index_select_backward is_complex is_floating_point is_nonzero
    is_same_size item le lift_fresh logical_and logical_and_ logical_not lt mT masked_fill masked_fill_ maximum
    minimum movedim mul mul_ narrow ne neg new_empty new_empty_strided new_full new_ones new_zeros numpy_T ones
    ones_like permute pixel_shuffle pixel_unshuffle promote_types real relu requires_grad_ reshape resize_
    resolve_conj resolve_neg result_type scalar_tensor scatter scatter_ scatter_add_ select select_backward set_data
    slice slice_backward slice_scatter split split_with_sizes squeeze squeeze_ stack sub sub_ swapaxes t t_
    threshold_backward to transpose unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view where zero_
    zeros zeros_like
    """.split()  # noqa: SIM905
)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(group: str) -> dict[str, str | None]:
    return {name: _version(name) for name in ("torch", *GROUPS[group][1])}


def why_not(group: str | None = None) -> str | None:
    """Why this machine cannot have the stored numbers, or None."""
    module: Any = importlib.import_module("flowkernels._native")
    if module.C is None:
        return f"the digests are of the kernels: {module.why_missing}"
    if ISA not in module.C.isas():
        return f"the digests are of {ISA}, this processor has {', '.join(module.C.isas())}"
    if group is not None:
        for name in GROUPS[group][1]:
            if _version(name) is None:
                return f"{name} is not installed"
    return None


def stored(group: str) -> dict[str, Any]:
    path = _STORED / f"{group}.json"
    return json.loads(path.read_text()) if path.exists() else {"versions": {}, "probe": "", "cases": {}}


# ---- in the process of its own ----


def _probe() -> str:
    """Products and functions of torch's own, by which two machines are told apart."""
    found = []
    for dtype in (torch.float32, torch.float64):
        for n, k, m in ((12, 4, 8), (37, 24, 24), (2100, 8, 46)):
            a, b = case.draw("probe a", n, k, dtype=dtype), case.draw("probe b", k, m, dtype=dtype)
            bias = case.draw("probe c", m, dtype=dtype)
            y = torch.addmm(bias, a, b)
            found += [y, y.sum(-1), y.sum(0), y.tanh(), y.exp().log1p(), y.softmax(-1), y.sigmoid(), y.cumsum(-1)]
            found += [y.T @ a, y.sin(), y.cos(), torch.nn.functional.softplus(y), torch.erf(y), y.logsumexp(-1)]
        image, weight = case.draw("probe x", 5, 4, 6, 6, dtype=dtype), case.draw("probe w", 8, 4, 3, 3, dtype=dtype)
        found.append(torch.conv2d(image, weight, padding=1))
    return case.digest(torch.cat([t.double().flatten() for t in found]))


def _kind(one: case.Case) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        one.run()
    names = {e.key.removeprefix("aten::") for e in profile.key_averages() if e.key.startswith("aten::")}
    return "ours" if names <= _EXACT else "torch"


def print_digests(groups: list[str], kinds: bool) -> int:
    warnings.simplefilter("ignore")  # an old spelling of a name is as good here
    torch.set_num_threads(1)
    print(json.dumps({group: _digests(group, kinds) for group in groups}))
    return 0


def _digests(group: str, kinds: bool) -> dict[str, Any]:
    module = importlib.import_module(f"{__package__}.{GROUPS[group][0]}")
    cases = module.cases() if group in ("ops", "native") else module.cases(group)
    found: dict[str, Any] = {}
    for name, one in case.unique(cases).items():
        try:
            results = one.run()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        found[name] = {"names": list(results), "digests": " ".join(case.digest(t) for t in results.values())}
        if kinds:
            found[name] |= {"kind": _kind(one), "not finite": case.not_finite(results)}
    return {"versions": _versions(group), "probe": _probe(), "cases": found}


# ---- in the caller's ----


def run(groups: Sequence[str], kinds: bool = False) -> dict[str, Any]:
    """The digests of each group, made under the instruction set that they are stored for."""
    flags = {
        "FLOWKERNELS_ISA": ISA, "FLOWKERNELS_BACKEND": "auto", "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": ISA,
        "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", __package__ or "tests.digests", "--print", *groups, *["--kinds"] * kinds]
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | flags
    ran = subprocess.run(command, cwd=_ROOT, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, f"{', '.join(groups)}: the process of its own failed\n{ran.stderr[-3000:]}"
    return json.loads(ran.stdout.splitlines()[-1])


# MKL's products of so many rows in float64 differ between machines whose small ones, the probe's, are the same.
_BY_MACHINE = " 2100 rows f64"


class Outcome(NamedTuple):
    compared: int
    left_out: int  # of kind "torch", which this machine or this torch computes otherwise
    wrong: list[str]  # a line for each case: other numbers, an error, no digest, or gone


def compare(groups: Sequence[str]) -> dict[str, Outcome]:
    """Every group beside what is stored of it."""
    return {group: beside(found, stored(group)) for group, found in run(groups).items()}


def beside(found: dict[str, Any], wanted: dict[str, Any]) -> Outcome:
    same_torch = found["probe"] == wanted["probe"] and found["versions"] == wanted["versions"]
    compared, left_out, wrong = 0, 0, []
    for name, right in wanted["cases"].items():
        kind, _, digests = right.partition(" ")
        if name not in found["cases"]:
            wrong.append(f"{name}: is stored, and no case has this name")
            continue
        one = found["cases"][name]
        if "error" in one:
            wrong.append(f"{name}: raised {one['error']}")
        elif kind == "torch" and (not same_torch or name.endswith(_BY_MACHINE)):
            left_out += 1
        else:
            compared += 1
            wrong += _difference(name, one, digests.split())
    new = [name for name in found["cases"] if name not in wanted["cases"]]
    wrong += [f"{name}: has no digest; `python -m tests.digests --add` writes it" for name in new]
    return Outcome(compared, left_out, wrong)


def _difference(name: str, one: dict[str, Any], right: list[str]) -> list[str]:
    given = one["digests"].split()
    if len(given) != len(right):
        return [f"{name}: must give {len(right)} tensors, got {len(given)}: {', '.join(one['names'])}"]
    differ = [n for n, a, b in zip(one["names"], given, right, strict=True) if a != b]
    return [f"{name}: {len(differ)} of {len(right)} tensors differ: {', '.join(differ)}"] if differ else []


def write(group: str, only_new: bool) -> str:
    """Stores the digests of all cases of a group, or of those that have none; → what was done."""
    if reason := why_not(group):
        return f"{group}: left as it is; {reason}"
    found, before = run([group], kinds=True)[group], stored(group)
    old = before["cases"] if only_new else {}
    if old and (found["probe"], found["versions"]) != (before["probe"], before["versions"]):
        return f"{group}: left as it is; another torch, library or machine than that of the stored: --write all"
    fresh = {name: one for name, one in found["cases"].items() if name not in old}
    bad = [f"{name}: {one['error']}" for name, one in fresh.items() if "error" in one]
    # A number that is none proves nothing.
    bad += [
        f"{name}: not finite: {', '.join(one['not finite'])}" for name, one in fresh.items() if one.get("not finite")
    ]
    assert not bad, f"{group}: nothing is written\n" + "\n".join(bad)
    cases = old | {name: f"{one['kind']} {one['digests']}" for name, one in fresh.items()}
    _STORED.mkdir(exist_ok=True)
    text = json.dumps({"versions": found["versions"], "probe": found["probe"], "cases": cases}, indent=0)
    (_STORED / f"{group}.json").write_text(text + "\n")
    counts = collections.Counter(entry.split(" ")[0] for entry in cases.values())
    return f"{group}: {len(cases)} cases, {counts['ours']} of our kernels alone, {counts['torch']} with torch's"
