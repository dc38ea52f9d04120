"""What continuous integration installs by hash is what the other lists name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "requirements"


def pins(file: str) -> dict[str, str]:
    """name: version, without the +cpu of a build."""
    found = re.findall(r"^([\w.-]+)(?:\[\w+\])?==([^\s;+]+)", (FOLDER / file).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize(
    "asked, locked", [("dev.txt", "locked.txt"), ("torch.txt", "locked-torch.txt"), ("docs.txt", "locked-docs.txt")]
)
def test_every_pin_is_locked(asked, locked) -> None:
    assert pins(asked)
    assert pins(asked).items() <= pins(locked).items(), f"run `make lock`: {asked} changed"


@pytest.mark.parametrize("locked", ["locked.txt", "locked-torch.txt", "locked-docs.txt"])
def test_every_locked_pin_has_a_hash(locked) -> None:
    entries = re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", (FOLDER / locked).read_text(), flags=re.MULTILINE))
    assert len(entries) == len(pins(locked))
    assert not [e for e in entries if "--hash=sha256:" not in e]
    assert "file:" not in (FOLDER / locked).read_text()


def test_the_locked_torch_is_the_one_without_cuda() -> None:
    """Which pip takes for "2.13.0" depends on the index; the other cannot be imported, as locked.txt has no CUDA."""
    assert re.findall(r"^torch==\S+", (FOLDER / "locked-torch.txt").read_text(), re.MULTILINE) == [
        f"torch=={pins('torch.txt')['torch']}+cpu"
    ]
