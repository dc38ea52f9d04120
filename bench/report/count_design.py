"""Counts how often the source says the same thing: nets, maps, splits, activation tables, frames of a call, lines.

`python -m bench.report.count_design [root] [--frames]` prints a table of the package at `root` (default: this one).
What it counts are names and shapes of code, so that the same script can count the tree before a change and after it;
each row lists what it found. `--frames` also runs the calls of `tests/test_frames.py`, of this tree only.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[2]
ACTIVATIONS = {"leaky_relu", "LeakyReLU", "elu", "ELU", "gelu", "GELU", "silu", "SiLU"}
RELU = {"relu", "ReLU"}
MAPS = {"RqsSpec", "AffineSpec", "RQS", "Affine"}


class Found(NamedTuple):
    count: int
    what: list[str]


class Tree:
    """The source below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = sorted((root / "flowkernels").rglob("*.py"))
        self.c = sorted(p for p in (root / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root)).removeprefix("flowkernels/")

    def below(self, *folders: str) -> list[Path]:
        return [p for p in self.python if self.name(p).split("/")[0] in folders]


@cache
def _text(path: Path) -> str:
    return path.read_text()


@cache
def _module(path: Path) -> ast.Module:
    return ast.parse(_text(path))


def _walk(paths: list[Path], kind: type | tuple[type, ...]) -> Iterator[tuple[Path, ast.AST]]:
    for path in paths:
        for node in ast.walk(_module(path)):
            if isinstance(node, kind):
                yield path, node


def _names(node: ast.AST) -> set[str]:
    """Every identifier, attribute and string in a piece of code."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found


def _calls(node: ast.AST) -> set[str]:
    called = (c.func for c in ast.walk(node) if isinstance(c, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in called}


def _fields(node: ast.ClassDef) -> set[str]:
    return {s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}


def _found(what: Iterator[str] | list[str]) -> Found:
    listed = list(what)
    return Found(len(listed), listed)


# ---- nets ----


def networks(tree: Tree) -> Found:
    """Functions of a reference that multiply layer after layer."""
    reference = [p for p in tree.below("ops") if p.name == "reference.py"]
    return _found(
        f"{tree.name(p)}:{f.name}"  # type: ignore[attr-defined]
        for p, f in _walk(reference, ast.FunctionDef)
        if _calls(f) & {"linear", "addmm", "_linear"} and any(isinstance(n, (ast.For, ast.While)) for n in ast.walk(f))
    )


def net_types(tree: Tree) -> Found:
    """Classes that declare a network's activation, terms or blocks as fields."""
    said = {"activation", "adds", "gates", "blocks"}
    return _found(f"{tree.name(p)}:{c.name}" for p, c in _walk(tree.below("ops"), ast.ClassDef) if _fields(c) & said)  # type: ignore


def activation_tables(tree: Tree) -> Found:
    """Tables of a module, branches of Triton, enums of C++ that list activations."""
    found = []
    for path in tree.python:
        for node in _module(path).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, (ast.Dict, ast.Tuple, ast.Set)):
                names = _names(node.value) & (RELU | ACTIVATIONS)
                if names & ACTIVATIONS or (names & RELU and len(node.value.__dict__.get("elts", [])) > 1):
                    found.append(f"{tree.name(path)}:{node.lineno}")
            elif isinstance(node, ast.FunctionDef) and "triton" in path.name and "leaky_relu" in _names(node):
                found.append(f"{tree.name(path)}:{node.name}")
    found += [f"{tree.name(p)} (enum)" for p in tree.c if re.search(r"enum[^;]*leaky", _text(p), re.I)]
    return _found(found)


def may_run(tree: Tree) -> Found:
    """Functions that ask themselves whether modules have hooks."""
    return _found(
        f"{tree.name(p)}:{f.name}"  # type: ignore[attr-defined]
        for p, f in _walk(tree.python, ast.FunctionDef)
        if _calls(f) & {"hooked", "hooked_globally", "is_bare"}
    )


# ---- maps ----


def called_univariate(tree: Tree) -> Found:
    found = [f"{tree.name(p)}:class" for p, c in _walk(tree.python, ast.ClassDef) if c.name == "Univariate"]  # type: ignore
    for path in tree.python:
        for node in _module(path).body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if any(isinstance(t, ast.Name) and t.id == "Univariate" for t in targets):
                found.append(f"{tree.name(path)}:alias")
    return _found(found)


def _asks(tree: Tree, names: set[str]) -> Found:
    found = []
    for path, node in _walk(tree.python, (ast.Call, ast.Compare)):
        if isinstance(node, ast.Call):
            asks = getattr(node.func, "id", "") in ("isinstance", "issubclass") and len(node.args) == 2
            if asks and _names(node.args[1]) & names:
                found.append(f"{tree.name(path)}:{node.lineno}")
        elif "type" in _calls(node) and any(_names(c) & names for c in node.comparators):  # type: ignore[attr-defined]
            found.append(f"{tree.name(path)}:{node.lineno}")  # type: ignore[attr-defined]
    return _found(found)


def asks_affine(tree: Tree) -> Found:
    return _asks(tree, {"AffineSpec"})


def asks_map(tree: Tree) -> Found:
    return _asks(tree, MAPS)


def is_affine(tree: Tree) -> Found:
    return _found(f"{tree.name(p)}:{m.start()}" for p in tree.c for m in re.finditer(r"\bis_affine\b", _text(p)))


def names_a_scale(tree: Tree) -> Found:
    """Files of package and csrc that name one scale of the affine map, as those to touch for a new one."""
    word = re.compile(r"per_?sigmoid|reciprocal_?sigmoid", re.I)
    return _found(tree.name(p) for p in tree.python + tree.c if word.search(_text(p)))


def positional_settings(tree: Tree) -> Found:
    """Calls that spell a map's settings by position, five or more."""
    makers = {"make_spec", "cached_spec", "affine_spec", "cached_affine_spec", "make_affine_spec", "cached_spec_for"}
    return _found(
        f"{tree.name(p)}:{c.lineno}"  # type: ignore[attr-defined]
        for p, c in _walk(tree.python, ast.Call)
        if _names(c.func) & makers and len(c.args) >= 5  # type: ignore[attr-defined]
    )


# ---- splits ----


def splits(tree: Tree) -> Found:
    """Classes that say which features are seen and which are mapped."""
    named = re.compile(r"Columns$|Split$")
    classes = [(p, c) for p, c in _walk(tree.python, ast.ClassDef)]
    kinds = {c.name for _, c in classes if named.search(c.name)}  # type: ignore[attr-defined]
    return _found(
        f"{tree.name(p)}:{c.name}"  # type: ignore[attr-defined]
        for p, c in classes
        if c.name in kinds or p.name in ("columns.py", "split.py")  # type: ignore[attr-defined]
    )


# ---- the rest ----


def backend_flags(tree: Tree) -> Found:
    """Questions to a backend or layer by `hasattr` or `getattr`, instead of a declared field."""
    paths = [
        p for p in tree.python if tree.name(p) in ("backends.py", "ops/_routing.py", "ops/_backend.py", "_machine.py")
    ]
    return _found(
        f"{tree.name(p)}:{c.lineno}"  # type: ignore[attr-defined]
        for p, c in _walk(paths, ast.Call)
        if getattr(c.func, "id", "") in ("hasattr", "getattr")  # type: ignore[attr-defined]
    )


def private_imports(tree: Tree) -> Found:
    """Private names imported from another module of the package."""
    return _found(
        f"{tree.name(p)}: {a.name}"
        for p, i in _walk(tree.python, ast.ImportFrom)
        for a in i.names  # type: ignore[attr-defined]
        if re.match(r"_[a-z]", a.name) and (i.module or "").count(".") + i.level > 1  # type: ignore[attr-defined]
        and not (tree.root / "flowkernels" / (i.module or "").removeprefix("flowkernels.").replace(".", "/") / f"{a.name}.py").exists()  # type: ignore[attr-defined]  # noqa: E501
    )  # fmt: skip


def many_parameters(tree: Tree) -> Found:
    """Functions of more than 8 parameters, Triton's apart."""
    found = []
    for path, f in _walk([p for p in tree.python if "triton" not in p.name], ast.FunctionDef):
        a = f.args  # type: ignore[attr-defined]
        if len(a.posonlyargs + a.args + a.kwonlyargs) > 8:
            found.append(f"{tree.name(path)}:{f.name}")  # type: ignore[attr-defined]
    return _found(found)


def small_glue(tree: Tree) -> Found:
    return _found(tree.name(p) for p in tree.c if len(_text(p).splitlines()) < 20)


def _matches(pattern: str) -> Callable[[Tree], Found]:
    def count(tree: Tree) -> Found:
        per_file = {tree.name(p): len(re.findall(pattern, _text(p))) for p in tree.python}
        return Found(sum(per_file.values()), [f"{n} ×{c}" for n, c in per_file.items() if c])

    return count


def compat_files(tree: Tree) -> Found:
    """Files that lie flat in compat."""
    return _found(p.name for p in tree.below("compat") if p.parent.name == "compat")


def compat_arrows(tree: Tree) -> Found:
    """Imports between modules of compat that lie in different folders or flat beside each other."""
    found = set()
    for path, node in _walk(tree.below("compat"), ast.ImportFrom):
        package = ["flowkernels", *tree.name(path).split("/")[:-1]]
        level: int = node.level  # type: ignore[attr-defined]
        base = package[: len(package) - level + 1] if level else []
        module = ".".join([*base, *([node.module] if node.module else [])])  # type: ignore[attr-defined]
        if not module.startswith("flowkernels.compat"):
            continue
        for alias in node.names:  # type: ignore[attr-defined]
            whole = tree.root / f"{module}.{alias.name}".replace(".", "/")
            target = f"{module}.{alias.name}" if whole.with_suffix(".py").exists() or whole.is_dir() else module
            rooms = [
                ".".join(m.split(".")[:3])
                for m in (tree.name(path).removesuffix(".py").replace("/", "."), target.removeprefix("flowkernels."))
            ]
            boxes = [".".join(r.split(".")[:2]) for r in rooms]
            if boxes[0] != boxes[1]:
                found.add(f"{boxes[0]} -> {boxes[1]}")
    return _found(sorted(found))


def _word(pattern: str) -> Callable[[Tree], Found]:
    return lambda tree: _found(tree.name(p) for p in tree.python + tree.c if re.search(pattern, _text(p)))


def _lines(select: Callable[[Tree], list[Path]]) -> Callable[[Tree], Found]:
    def count(tree: Tree) -> Found:
        return Found(sum(len(_text(p).splitlines()) for p in select(tree)), [])

    return count


ROWS: dict[str, Callable[[Tree], Found]] = {
    "places that define a network in PyTorch": networks,
    "types with a network's fields": net_types,
    "activation tables": activation_tables,
    'functions that ask "may it run now?" of hooks': may_run,
    "`Univariate`: classes and aliases": called_univariate,
    "`isinstance` or `type` of an AffineSpec": asks_affine,
    "`isinstance` or `type` of any map": asks_map,
    "`is_affine` in C++": is_affine,
    "settings of a map by position": positional_settings,
    "files that name one affine scale": names_a_scale,
    "kinds of columns and splits": splits,
    "`hasattr`, `getattr` of backends": backend_flags,
    "private names imported": private_imports,
    "functions of more than 8 parameters": many_parameters,
    "`dict[str, Any]`": _matches(r"dict\[str, Any\]"),
    "`type: ignore`": _matches(r"type: ignore"),
    "`fmt: skip`": _matches(r"fmt: skip"),
    "files of csrc under 20 lines": small_glue,
    "files flat in compat": compat_files,
    "import arrows in compat": compat_arrows,
    "files with the word strip": _word(r"(?i)strip(?!\()s?(?![a-z(])"),
    "files with the word wave": _word(r"(?i)\bwaves?\b"),
    "files with half_turn": _word("half_turn"),
    "files with the word columns": _word(r"(?i)\bcolumns\b"),
    "lines of ops": _lines(lambda t: t.below("ops")),
    "lines of compat": _lines(lambda t: t.below("compat")),
    "lines of ops and compat": _lines(lambda t: t.below("ops", "compat")),
    "lines of the package": _lines(lambda t: t.python),
    "lines of csrc": _lines(lambda t: t.c),
}


def main(arguments: list[str]) -> None:
    roots = [a for a in arguments if not a.startswith("-")]
    tree = Tree(Path(roots[0]).resolve() if roots else HERE)
    print("| | count | what |\n|---|---:|---|")
    for name, count in ROWS.items():
        found = count(tree)
        listed = ", ".join(found.what[:12]) + (", ..." if len(found.what) > 12 else "")
        print(f"| {name} | {found.count:,} | {listed} |")
    if "--frames" in arguments:
        from tests import test_frames

        for name, (make, _) in test_frames.CALLS.items():
            print(f"| frames of {name} | {test_frames.frames(make())} | |")


if __name__ == "__main__":
    main(sys.argv[1:])
