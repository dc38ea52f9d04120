"""What a wheel and an sdist hold."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from tests.elf import Elf

# Whatever git lists under these names is in the sdist.
IN_SDIST = ("flowkernels", "csrc", "cmake", "tests", "bench", "docs", "examples", "requirements", ":(glob)*.md",
            "*.toml", "*.cff", "mkdocs.yml", "CMakeLists.txt", "Makefile", "LICENSE", "setup.py")  # fmt: skip


def check_wheel(path: Path) -> None:
    """Raises AssertionError where the wheel holds too much or too little."""
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = wheel.namelist()
        tops = {name.partition("/")[0] for name in names}
        # A folder flowkernels.libs would be auditwheel's copy of libgomp: a second pool of threads in the process.
        assert all(top == "flowkernels" or top.endswith(".dist-info") for top in tops), tops
        assert not [n for n in names if n.endswith((".cpp", ".h", ".cu", ".pyc", "/README.md"))]
        assert "flowkernels/py.typed" in names
        assert any(n.endswith("licenses/LICENSE") for n in names)
        (metadata,) = (wheel.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
        for line in ("License-Expression: MIT", "Requires-Python: >=3.10", "Requires-Dist: torch>=2.6"):
            assert line in metadata, line
        modules = [n for n in names if n.endswith(".so")]
        assert any(n.startswith("flowkernels/_C.") for n in modules), "no compiled module"
        for name in modules:
            elf = Elf(Path(wheel.extract(name, folder)))
            assert not [lib for lib in elf.needed if lib.startswith(("libtorch", "libc10", "libcu"))], elf.needed
            assert elf.search_path == [] and elf.relro == "full", name
