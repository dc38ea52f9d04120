"""No file of the project loads a pickle that somebody else may have written; what a test keeps in memory is its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What runs code that a file holds, and the argument that forbids it.
LOADERS = {("torch", "load"): ("weights_only", True), ("np", "load"): ("allow_pickle", False)}
PICKLES = {("pickle", "load"), ("pickle", "Unpickler"), ("joblib", "load"), ("torch.jit", "load")}


def called(call: ast.Call) -> tuple[str, str]:
    where, _, name = ast.unparse(call.func).rpartition(".")
    return where, name


def unsafe(text: str) -> list[str]:
    """The calls of this source that may run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or (node.args and ast.unparse(node.args[0]).startswith("io.BytesIO(")):
            continue
        forbids = LOADERS.get(called(node))
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if called(node) in PICKLES or (forbids and given.get(forbids[0]) is not forbids[1]):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("folder", ["flowkernels", "examples", "bench", "tests"])
def test_no_file_loads_a_pickle(folder) -> None:
    files = [f for f in sorted(ROOT.glob(f"{folder}/**/*.py")) if f != Path(__file__)]
    assert files
    assert not {str(f.relative_to(ROOT)): found for f in files if (found := unsafe(f.read_text()))}


@pytest.mark.parametrize(
    "line", ["torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "pickle.load(f)", "np.load(f, 'r')"]
)
def test_a_load_that_trusts_its_file_is_seen(line) -> None:
    assert unsafe(line) and not unsafe("torch.load(f, weights_only=True); np.load(f, allow_pickle=False)")
