"""Stands in for CUDA's libraries, of gigabytes, that a torch built for CUDA links: nobody calls them on a machine
without a GPU, the loader only wants their symbols. Writes lib*.so into a folder, with GCC and binutils."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

_NEEDED = re.compile(r"NEEDED.*\[(.*)\]")
_SYMBOL = re.compile(r" U (\w+)(?:@(\S+))?$", re.MULTILINE)
_FOREIGN = re.compile(r"lib(cu|nv|nccl)")
_ANSWER = "mov $35, %eax\n ret"  # of whatever is asked at import: the driver does not suffice


def _said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def write(folder: Path) -> list[str]:
    """Adds to torch/lib what its libraries need of CUDA's, and names it. x86-64."""
    needed: set[str] = set()
    symbols: dict[str, set[str]] = defaultdict(set)  # by version, which is or is in the library's name, or ""
    for library in sorted(folder.glob("*.so*")):
        needed |= set(_NEEDED.findall(_said("readelf", "-dW", library)))
        for name, version in _SYMBOL.findall(_said("nm", "-D", "--undefined-only", "--with-symbol-versions", library)):
            symbols[version].add(name)
    written = sorted(name for name in needed if _FOREIGN.match(name) and not (folder / name).exists())
    anybody = {name for name in symbols[""] if re.match("cu|nv|nccl", name, re.IGNORECASE)}
    for name in written:
        mine = {v: names for v, names in symbols.items() if v and v.lower() in name.lower()}
        every = sorted(anybody.union(*mine.values()))
        code = [f".globl {s}\n.type {s}, @function\n{s}: {_ANSWER}" for s in every]
        (folder / "stub.S").write_text("\n".join([".text", *code, '.section .note.GNU-stack,"",@progbits', ""]))
        script = [f"{v} {{ global: {';'.join(sorted(names))}; }};\n" for v, names in mine.items()]
        (folder / "stub.map").write_text("".join(script) or "{ global: *; };\n")
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name},--version-script=stub.map", "stub.S", "-o", name]
        subprocess.run(command, cwd=folder, check=True)
    return written
