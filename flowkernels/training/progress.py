"""What a user sees while a flow is trained: a bar where rich is installed, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .result import Epoch

Report = Callable[[Epoch], Any]


def _silent(epoch: Epoch) -> None:
    pass


def said(epoch: Epoch) -> str:
    """Losses of an epoch in one line."""
    if epoch.validation is None:
        return f"loss {epoch.train:.3f} nats"
    return f"loss {epoch.train:.3f}, validation {epoch.validation:.3f} nats, best epoch {epoch.best_epoch}"


def _line(epoch: Epoch) -> None:
    print(f"epoch {epoch.epoch}/{epoch.epochs}: {said(epoch)}", flush=True)


@contextlib.contextmanager
def reporter(where: str, progress: object, epochs: int, first: bool) -> Iterator[Report]:
    """What to call after every epoch; on other ranks than the first one it says nothing."""
    if not isinstance(progress, bool) and not callable(progress):
        raise ValueError(f"{where}: progress must be True, False or a function of an Epoch, got {progress!r:.60}")
    if not first or progress is False:
        yield _silent
    elif progress is not True:
        yield progress  # type: ignore[misc]
    else:
        try:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            yield _line
            return
        columns = (
            BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )  # fmt: skip
        with Progress(*columns) as bar:
            task = bar.add_task("", total=epochs)
            yield lambda epoch: bar.update(task, completed=epoch.epoch, description=said(epoch))
