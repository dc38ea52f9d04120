"""The site says what is so: its blocks run, its pages name every class, its notebooks run and hold no outputs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowkernels.compat.engine import table

from .install import blocks

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if blocks.blocks(p.read_text(encoding="utf-8")))
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
BLOCKS = [(p, n, b) for p in PAGES for n, b in enumerate(blocks.blocks(p.read_text(encoding="utf-8")), 1)]

pytestmark = pytest.mark.usefixtures("one_thread")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return loaded("hooks")


def run(code: str, name: str) -> None:
    for package in sorted(blocks.imported(f"```python\n{code}\n```")):
        pytest.importorskip(package)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "number", "block"), BLOCKS, ids=[f"{p.relative_to(DOCS)}-{n}" for p, n, _ in BLOCKS])
def test_every_block_runs_as_pasted(page, number, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        run(block, f"{page.name}, block {number}")
    finally:
        for switch in switches(block):
            switch.restore()


def switches(block: str) -> list:
    """Of what a block has switched on for the whole process."""
    from flowkernels.compat import accelerate_library

    return [accelerate_library(name) for name in re.findall(r"accelerate_library\(\"(\w+)\"\)", block)]


def test_every_class_of_a_table_is_on_its_page(hooks):
    pages = hooks.library_pages()
    assert len(pages) >= 7
    for library, cls, what in table.rows():
        assert f"| `{cls}` | {what} |" in pages[library]
    assert "InputOutsideDomain" in pages["nflows"]  # what differs by design


def test_the_site_lists_what_is_made(hooks):
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    made = [f"libraries/{n}.md" for n in hooks.library_pages()] + [f"notebooks/{n}.md" for n in hooks.notebook_pages()]
    assert not [page for page in made if page not in listed]


def test_the_api_has_every_public_name():
    import flowkernels

    written = set(re.findall(r"^::: ([\w.]+)$", "\n".join(p.read_text() for p in DOCS.glob("api/*.md")), re.MULTILINE))
    modules = [flowkernels, flowkernels.ops, flowkernels.flows, flowkernels.transforms, flowkernels.nets]
    modules += [flowkernels.distributions, flowkernels.training, flowkernels.plot]
    modules += [flowkernels.objectives, flowkernels.inference]
    parts = {"__version__", *(module.__name__.removeprefix("flowkernels.") for module in modules)}
    for module in modules:
        for name in set(module.__all__) - parts:
            path = f"{module.__name__}.{name}"
            assert {path, f"{path}.{name}"} & written, path  # the second: a function in a module of its name


def test_docstrings_as_mkdocs_reads_them():
    rst = loaded("griffe_rst")
    text = (
        "With :math:`z =\n x`,\n\n.. math:: a \\\\\n    b\n\nArgs:\n    a, b,\n        c: see.\n\nExample:\n    >>> 1\n"
    )
    made = rst.markdown(text)
    assert "With `z = x`," in made and "```text\na \\\\\n    b\n```" in made
    assert "    a, b, c: see." in made and "\nExamples:\n" in made
    assert rst.markdown("====  ====\nx     y\n====  ====\n1     2\n====  ====").startswith("```text\n====  ====\nx")


# ---- notebooks ----


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def code_of(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]


def test_there_are_notebooks_and_they_hold_no_outputs():
    assert len(NOTEBOOKS) >= 4
    for notebook in NOTEBOOKS:
        ran = [c for c in cells(notebook) if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])]
        assert not ran, f"{notebook.name}: clear its outputs"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    code = code_of(notebook)
    packages = {name for text in code for name in re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE)}
    for package in sorted(packages - {"torch", "flowkernels"} - set(sys.stdlib_module_names)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    try:
        for n, text in enumerate(code, 1):
            exec(compile(text, f"{notebook.name}, cell {n}", "exec"), names)
    finally:
        importlib.import_module("matplotlib.pyplot").close("all")
        for switch in switches("\n".join(code)):
            switch.restore()


def test_the_notebook_on_sbi_says_what_it_lacks(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sbi"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sbi", None)
    first = code_of(DOCS / "notebooks" / "posterior_with_sbi.ipynb")[0]
    with pytest.raises(SystemExit, match="pip install sbi"):
        exec(first, {"__name__": "__main__"})
