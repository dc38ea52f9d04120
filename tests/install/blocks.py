"""The Python blocks of a Markdown file, each as if it were pasted alone: `python blocks.py README.md`."""

import re
import sys
from pathlib import Path

PLACEHOLDER = re.compile(r"= \.\.\.( |$)", re.MULTILINE)  # what the reader has to fill in


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def imported(text: str) -> set[str]:
    """The packages that the blocks need."""
    found = re.findall(r"^(?:import|from) (\w+)", "\n".join(blocks(text)), re.MULTILINE)
    return set(found) - {"torch", "flowkernels"} - set(sys.stdlib_module_names)


def main() -> int:
    found = blocks(Path(sys.argv[1]).read_text(encoding="utf-8"))
    assert found, f"{sys.argv[1]} has no block of Python"
    ran = 0
    for n, block in enumerate(found, 1):
        if PLACEHOLDER.search(block):
            print(f"block {n}: left out, the reader fills in a line of it")
            continue
        exec(compile(block, f"{sys.argv[1]}, block {n}", "exec"), {"__name__": "__main__"})
        ran += 1
    print(f"blocks: {ran} of {len(found)} ran")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
