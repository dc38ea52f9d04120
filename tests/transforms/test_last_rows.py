"""Last layers of a run, turned together."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.transforms.last_rows import LastRows, Turn

HALVES = LastRows((0, 2, 1, 3), (2.0, 1.0, 2.0, 1.0), 4)  # s, s | t, t -> s, t | s, t
LACKS = LastRows((0, -1, 1, -1), (1.0,) * 4, 2)


def layer(rows: int, width: int) -> list[Tensor]:
    return [torch.randn(rows, width, requires_grad=True), torch.randn(rows, requires_grad=True)]


def by_hand(last: LastRows, t: Tensor) -> Tensor:
    rows = [torch.zeros_like(t[0]) if i < 0 else t[i] * f for i, f in zip(last.rows, last.factors, strict=True)]
    return torch.stack(rows)


def test_rows_factors_and_gradients() -> None:
    """Of some widths, among layers that are left as they are."""
    torch.manual_seed(0)
    lasts = [HALVES, None, LACKS, HALVES, LACKS]
    layers = [layer(4 if last is HALVES else 2, 5 if i == 3 else 3) for i, last in enumerate(lasts)]
    tensors = tuple(t for pair in layers for t in pair)
    turn = Turn(lasts)
    for _ in range(2):  # again, as it was grouped
        found = turn(tensors, [0, 4, 6, 8])
        assert found is not None
        wanted = [t if last is None else by_hand(last, t) for last, p in zip(lasts, layers, strict=True) for t in p]
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs) and ours.is_contiguous()
        grads = [torch.autograd.grad(sum((t * t).sum() for t in given), tensors) for given in (found, wanted)]
        for ours, theirs in zip(*grads, strict=True):
            assert torch.equal(ours, theirs)


def test_what_is_written_to_data_is_seen() -> None:
    tensors, turn = tuple(layer(4, 3)), Turn([HALVES])
    with torch.no_grad():
        turn(tensors, [0])
        tensors[0].data.fill_(3)
        found = turn(tensors, [0])
    assert found is not None and found[0].tolist() == [[6.0] * 3, [3.0] * 3] * 2


def test_other_dtypes_after_single_precision() -> None:
    turn = Turn([HALVES])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        found = turn(tuple(t.to(dtype) for t in layer(4, 3)), [0])
        assert found is not None and {t.dtype for t in found} == {dtype}


def test_elsewhere_after_the_cpu() -> None:
    turn, there = Turn([HALVES]), torch.device("meta")
    for device in (torch.device("cpu"), there, torch.device("cpu")):
        found = turn(tuple(t.to(device) for t in layer(4, 3)), [0])
        assert found is not None and {t.device for t in found} == {device}
        assert turn._groups[0].rows.device == device


def test_other_sizes_are_the_librarys_to_refuse() -> None:
    turn = Turn([HALVES, LACKS])
    good = (*layer(4, 3), *layer(2, 3))
    assert turn(good, [0, 2]) is not None
    for other in ((*layer(5, 3), *layer(2, 3)), (*layer(4, 3), *layer(3, 3)), (good[0], torch.zeros(3), *good[2:])):
        assert turn(other, [0, 2]) is None
    assert turn((*layer(4, 7), *layer(2, 8)), [0, 2]) is not None  # of other widths
