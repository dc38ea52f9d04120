"""What the site's build adds: one page per library, written from the tables that `accelerate` itself reads."""

from __future__ import annotations

import importlib
import inspect
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


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once it has listed the folder."""
    from mkdocs.structure.files import File  # which the test of the pages has no need of

    for name, text in library_pages().items():
        files.append(File.generated(config, f"libraries/{name}.md", content=text))
    return files
