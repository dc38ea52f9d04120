"""Docstrings hold LaTeX and blocks as Sphinx has them; a site without scripts of others shows them as text."""

from __future__ import annotations

import re
import textwrap
from typing import Any

try:
    from griffe import Extension
except ImportError:  # tests read docstrings without the site's tools
    Extension: Any = object

INLINE = re.compile(r":math:`([^`]+)`", re.DOTALL)
DISPLAY = re.compile(r"^( *)\.\. math:: *(.*(?:\n(?: *$|\1 +\S.*))*)", re.MULTILINE)
NAMES = re.compile(r"^( +(?:\w+, )*\w+,)\n +(?=(?:\w+, )*\w+: )", re.MULTILINE)  # of arguments, over two lines
TABLE = re.compile(r"^( *)=+(?: +=+)+\n(?:.*\n)*?(?:\1=+(?: +=+)+\n(?:.*\n)*?)?\1=+(?: +=+)+$", re.MULTILINE)


def _fenced(indent: str, text: str) -> str:
    return textwrap.indent(f"```text\n{textwrap.dedent(text).strip()}\n```", indent)


def markdown(text: str) -> str:
    """A docstring as mkdocs reads it."""
    text = TABLE.sub(lambda m: _fenced(m[1], m[0]), text)
    text = DISPLAY.sub(lambda m: _fenced(m[1], m[2].lstrip()) + "\n", text)
    text = NAMES.sub(r"\1 ", text).replace("\nExample:\n", "\nExamples:\n")  # the word that griffe takes for doctests
    return INLINE.sub(lambda m: f"`{' '.join(m[1].split())}`", text)


class Rst(Extension):
    """What mkdocstrings asks about every object that it reads."""

    def on_object(self, *, obj: Any, **rest: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
