"""What can be wrong with a kernel, and what this interpreter does not know."""

from __future__ import annotations


class Unsupported(Exception):
    """An opcode, a directive or a launch outside of the documented subset."""


class Fault(Exception):
    """What a GPU would answer with an error, with a hang or with wrong numbers."""
