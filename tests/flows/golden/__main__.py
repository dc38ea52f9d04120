"""`python -m tests.flows.golden`: writes the files that are missing."""

from . import write

print(*write(), sep="\n")
