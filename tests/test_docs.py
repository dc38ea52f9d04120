"""The site says what is so: its blocks run, its pages name every class, its notebooks run and hold no outputs."""

from __future__ import annotations

import importlib.util
import re
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


def test_the_site_lists_every_library(hooks):
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [name for name in hooks.library_pages() if f"libraries/{name}.md" not in listed]


def test_the_api_has_every_public_name():
    import flowkernels

    written = set(re.findall(r"^::: ([\w.]+)$", "\n".join(p.read_text() for p in DOCS.glob("api/*.md")), re.MULTILINE))
    modules = [flowkernels, flowkernels.ops, flowkernels.flows, flowkernels.transforms, flowkernels.nets]
    parts = {"ops", "flows", "transforms", "nets", "distributions", "__version__"}
    for module in (*modules, flowkernels.distributions):
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
