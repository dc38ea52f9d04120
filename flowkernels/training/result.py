"""What training tells: after every epoch, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from flowkernels.flows import Flow


class Epoch(NamedTuple):
    """What `fit` says after an epoch; losses are means of ``-log_prob``, in nats.

    Attributes:
        epoch: its number, from 1 on.
        epochs: how many there will be at most.
        train: of the training rows, taken while the weights moved.
        validation: of the validation rows after the epoch; None without any.
        best_epoch: the epoch with the lowest validation loss so far; without validation rows this one.
    """

    epoch: int
    epochs: int
    train: float
    validation: float | None
    best_epoch: int


@dataclass(frozen=True)
class Fit:
    """What `fit` did.

    Attributes:
        flow: the trained flow, with the weights of ``best_epoch`` and in evaluation mode: the one that was given, or
            with ``standardise=True`` the one made of it.
        train: per epoch the mean of ``-log_prob`` over the training rows, in nats, taken while the weights moved.
        validation: per epoch the mean of ``-log_prob`` over the validation rows after it, in nats; empty without any.
        best_epoch: the epoch with the lowest validation loss, from 1 on; without validation rows the last one; 0 where
            no epoch was finished.
        seconds: of all epochs, over all runs.
        stopped: why: ``"epochs"`` (all are done), ``"patience"``, or ``"interrupted"`` (Ctrl-C).
    """

    flow: Flow
    train: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    seconds: float
    stopped: str
