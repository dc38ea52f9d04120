"""What tests of layers that run as one op share, of native flows and of other libraries' containers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, backends
from flowkernels.ops.flow import op

WHERE_THEY_RUN = pytest.mark.skipif(
    _native.C is None or backends.default() not in ("auto", "cpu"), reason="runs are of the CPU's kernels"
)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each run of the op had."""
    found: list[int] = []
    run = op.run

    def seen(backend: Any, spec: Any, tensors: Any) -> Any:
        found.append(len(spec.layers))
        return run(backend, spec, tensors)

    monkeypatch.setattr(op, "run", seen)
    return found


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
