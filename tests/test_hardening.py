"""The compiled modules are hardened, link no torch, and look for nothing in a folder of the machine that built them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowkernels import _native

from .elf import Elf

MODULES = [
    pytest.param(module, id=name, marks=pytest.mark.skipif(module is None, reason=str(why)))
    for name, module, why in (
        ("_C", _native.C, _native.why_missing),
        ("_cuda", _native.CUDA, _native.why_cuda_missing),
    )
]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")


def read(module: object) -> Elf:
    elf = Elf(Path(str(module.__file__)))  # type: ignore[attr-defined]
    if any("asan" in lib or "tsan" in lib for lib in elf.needed):
        pytest.skip("built with a sanitizer, which has checks of its own")
    return elf


@pytest.mark.parametrize("module", MODULES)
def test_it_is_hardened(module) -> None:
    elf = read(module)
    assert elf.relro == "full"
    assert not elf.executable_stack
    assert "__stack_chk_fail" in elf.imports
    if "Clang" not in getattr(module, "compiler", ""):  # whose variadic functions have no checked form
        assert any(name.endswith("_chk") for name in elf.imports)  # _FORTIFY_SOURCE


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_searched_for_in_a_folder_of_the_machine_that_built_it(module) -> None:
    assert read(module).search_path == []


@pytest.mark.parametrize("module", MODULES)
def test_it_links_the_system_and_one_openmp_and_no_torch(module) -> None:
    """Whatever torch is installed, and whether there is a driver."""
    system = {"libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64", "ld-linux-aarch64", "libgomp"}
    system |= {"libdl", "librt", "libpthread"}  # of a C library older than 2.34
    assert {name.partition(".so")[0] for name in read(module).needed} <= system


@pytest.fixture(scope="module")
def soft(tmp_path_factory) -> Elf:
    """A library with all of it switched off."""
    folder = tmp_path_factory.mktemp("soft")
    (folder / "a.c").write_text('#include <stdio.h>\nvoid f(char *s) { char t[64]; sprintf(t, "%s,", s); puts(t); }\n')
    flags = ["-fno-stack-protector", "-U_FORTIFY_SOURCE", "-Wl,-z,norelro,-z,lazy,-z,execstack,-rpath,/somewhere"]
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", *flags, "a.c", "-o", "a.so"], cwd=folder, check=True)
    return Elf(folder / "a.so")


def test_a_soft_library_is_seen(soft) -> None:
    assert (soft.relro, soft.executable_stack, soft.search_path) == ("none", True, ["/somewhere"])
    assert "sprintf" in soft.imports and not any("_chk" in name for name in soft.imports)
    assert "libc.so.6" in soft.needed
