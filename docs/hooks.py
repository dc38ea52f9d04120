"""What the site's build adds: a page per library, from the tables that `accelerate` itself reads, and per notebook."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from flowkernels import compat
from flowkernels.compat.engine import table

TITLES = {"freia": "FrEIA", "pyro": "Pyro", "copies": "Copies of nflows' spline"}
# What a page says before its table: the line that switches the library on, where there is one.
START = """\
```python
import flowkernels

flowkernels.accelerate_library("{name}")  # every model that is built from now on; .restore() ends it
```

or, of one model, `print(flowkernels.accelerate(model))`, which also says what of it is left alone, and why.
"""
COPIES = """\
Models whose own code has such a copy, under any name, are accelerated by `flowkernels.accelerate(model)`.
"""


def library_pages() -> dict[str, str]:
    """Name → Markdown: the classes of its table, then what the library's package says of itself."""
    pages = {}
    for name in sorted({row[0] for row in table.rows()}):
        package = importlib.import_module(f"{compat.__name__}.{name}")
        lines = ["| class | what runs fused |", "|---|---|"]
        lines += [f"| `{cls}` | {what} |" for library, cls, what in table.rows() if library == name]
        about = (inspect.getdoc(package) or "").strip()
        start = COPIES if name == "copies" else START.format(name=TITLES.get(name, name))
        pages[name] = "\n".join(
            [f"# {TITLES.get(name, name)}", "", start, "## Classes", "", *lines, "", "## What differs", "", about, ""]
        )
    return pages


def notebook_pages() -> dict[str, str]:
    """Name → Markdown: the text and the code of a notebook, without outputs, as it is kept."""
    pages = {}
    for path in sorted((Path(__file__).parent / "notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        pages[path.stem] = "\n\n".join([*parts, f"[The notebook]({path.name}); a test runs it.", ""])
    return pages


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once it has listed the folder."""
    from mkdocs.structure.files import File  # which the test of the pages has no need of

    for folder, pages in (("libraries", library_pages()), ("notebooks", notebook_pages())):
        for name, text in pages.items():
            files.append(File.generated(config, f"{folder}/{name}.md", content=text))
    return files
