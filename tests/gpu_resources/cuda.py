"""Registers, stack and shared memory of every kernel in the built CUDA module, as cuobjdump reads them.

`python -m tests.gpu_resources.cuda` writes cuda.json, the table that tests/cuda/test_resources.py compares with; commit
it with what explains the change. `--print` prints it as a table instead.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("cuda.json")
ARCHS = ("sm_80", "sm_90")  # of a developer's build without a GPU
Resources = dict[str, dict[str, dict[str, int]]]  # kernel → arch → registers, stack, shared

_FUNCTION = re.compile(r"Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def cuobjdump() -> str | None:
    """The tool, from the CUDA toolkit or from Triton's wheel, which carries it."""
    found = shutil.which("cuobjdump")
    if found is None and (triton := importlib.util.find_spec("triton")) is not None and triton.origin:
        path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(path) if path.exists() else None
    return found


def short_names(mangled: list[str]) -> list[str]:
    """affine_kernel<float, 4, false>: without namespaces, whose hashes change with the path of the build."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return [re.sub(r"^.*?(\w+(<.*?>)?)\(.*$", r"\1", line.split("(anonymous namespace)::", 1)[-1])
            for line in done.stdout.splitlines()]  # fmt: skip


def read(module: str, tool: str) -> Resources:
    """The resources of every kernel of a built module."""
    done = subprocess.run([tool, "--dump-resource-usage", module], capture_output=True, text=True, check=True)
    table: Resources = {}
    for part in done.stdout.split("Fatbin elf code:")[1:]:
        arch = re.search(r"arch = (\w+)", part)
        found = _FUNCTION.findall(part)
        assert arch is not None
        for name, (_, *numbers) in zip(short_names([f[0] for f in found]), found, strict=True):
            registers, stack, shared, local = map(int, numbers)
            row = {"registers": registers, "stack": stack + local, "shared": shared}
            table.setdefault(name, {})[arch[1]] = row
    return dict(sorted(table.items()))


def main() -> int:
    from flowkernels import _native

    tool = cuobjdump()
    if _native.CUDA is None or tool is None:
        print(_native.why_cuda_missing or "no cuobjdump: it comes with CUDA and with Triton")
        return 1
    table = read(_native.CUDA.__file__, tool)
    if sys.argv[1:] == ["--print"]:
        print("| kernel | arch | registers | stack | shared |\n|---|---|---|---|---|")
        for name, archs in table.items():
            for arch, row in archs.items():
                print(f"| `{name}` | {arch} | {row['registers']} | {row['stack']} | {row['shared']} |")
        return 0
    kept = {name: {a: row for a, row in archs.items() if a in ARCHS} for name, archs in table.items()}
    TABLE.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{len(kept)} kernels: {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
