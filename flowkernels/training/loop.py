"""Maximum likelihood, epoch by epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowkernels._arguments import count, flag, is_number, is_whole, positive
from flowkernels.flows import Flow
from flowkernels.saving.files import Path

from . import checkpoint as files
from .data import Rows, checked, split
from .epoch import Modes, Place, Settings, seed_of, train, validate
from .progress import Report, reporter
from .ranks import Ranks, ranks
from .result import Epoch, Fit
from .schedule import schedule_of
from .standardise import standardised
from .state import State

_WHERE = "training.fit"


def fit(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    lr: float = 1e-3,
    validation: float | Tensor | tuple[Tensor, Tensor] | None = 0.1,
    patience: int | None = 20,
    schedule: Literal["cosine"] | Callable[[float], float] | None = "cosine",
    clip: float | None = 5.0,
    weight_decay: float = 0.0,
    standardise: bool = False,
    checkpoint: Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool | Callable[[Epoch], Any] = True,
) -> Fit:
    r"""Trains a flow on rows ``x`` by maximum likelihood with Adam; the flow ends with its best weights.

    .. math:: \min_\theta \; -\frac1N \sum_n \log p_\theta(x_n \mid c_n)

    in nats. After every epoch the loss of the validation rows decides which weights are the best, and ``patience``
    epochs without better ones end the training. Data may lie on another device than the flow: batches follow it.

    **Exact resume.** With ``checkpoint`` every epoch ends with a file, whole whatever happens meanwhile: weights, best
    weights, state of Adam, losses. Learning rates, the order of the rows and the noise (dropout, dequantisation) follow
    from ``seed`` and the number of the epoch. The same call with the same data, killed at any moment and made again,
    goes on after the last whole epoch, to the same weights bit for bit as if it had never been stopped, on the same
    machine with as many threads. ``epochs`` and ``patience`` may differ (under the cosine more epochs are another
    schedule from there on); a file of other settings or other data is refused. torch's global generators are as before
    once ``fit`` returns.

    **Many processes.** Under ``torchrun`` (or in a group of ``torch.distributed``) each process trains its share of
    every batch, under DistributedDataParallel. Give all of them the same data and arguments; ``batch_size`` counts the
    rows of all, so the steps are those of one process up to rounding (and noise). The first process writes and shows
    progress. Put the flow on the process' own GPU first.

    Args:
        flow: what to train; parameters that do not require gradients stay as they are.
        x: ``[N, D]``, ``[N, C, L]`` for signals or ``[N, C, H, W]`` for images, in the dtype of the weights (or whole
            numbers, for a flow that dequantises them).
        context: ``[N, C]`` beside them, or what the flow's embedding takes.
        epochs: passes over the training rows, at most.
        batch_size: rows of a step, at most: all steps of an epoch have as many, give or take one.
        lr: learning rate, at its highest.
        validation: the share of the rows, drawn at random, that is not trained on; or rows of your own, ``x`` or
            ``(x, context)``; None or 0: none, all epochs are done and the last weights are the best.
        patience: epochs without a better validation loss after which to stop; None: never.
        schedule: ``"cosine"``, from ``lr`` to 0 over all epochs; None, always ``lr``; or a function of the share of the
            steps that is done, 0 to 1, which gives the factor of ``lr``.
        clip: the largest norm of the gradient, to which it is scaled down; None: any.
        weight_decay: of AdamW; 0: Adam.
        standardise: bring data and context to zero mean and unit variance in a first layer, by the training rows, as
            `standardised` does; `Fit.flow` is then the flow to use.
        checkpoint: path of a safetensors file (``pip install 'flowkernels[io]'``); None: none.
        resume: go on from ``checkpoint`` where it exists; False: start anew and write over it.
        seed: of the split, the orders and the noise. The weights are the flow's own.
        progress: show a bar (with rich installed) or a line per epoch; or a function that is called with an `Epoch`
            after each.

    Returns:
        A `Fit`: the flow, in evaluation mode, losses per epoch in nats, the best epoch, seconds, why it stopped. Ctrl-C
        ends the training like ``patience`` does, in one process, with ``stopped="interrupted"``.

    Raises:
        TypeError: ``flow`` is no `flowkernels.flows.Flow`; data are no tensors, or of another dtype than the weights.
        ValueError: another argument breaks its contract, data are not finite, or ``checkpoint`` is of another training.
        FloatingPointError: the loss became infinite or NaN; the flow has its best weights so far.
        ImportError: there is a ``checkpoint``, and safetensors is not installed.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762,
        section 2.3.1; Kingma, Ba: Adam, ICLR 2015, arXiv:1412.6980.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NSF
        >>> from flowkernels.training import fit
        >>> x = 100 + 5 * torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> flow = NSF(2, transforms=1, bins=4, hidden=(8,))
        >>> found = fit(flow, x, epochs=3, batch_size=64, standardise=True, progress=False)
        >>> len(found.train), found.stopped, found.flow.sample(4).shape
        (3, 'epochs', torch.Size([4, 2]))
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"{_WHERE}: flow must be a flowkernels.flows.Flow, got {type(flow).__name__}")
    settings = Settings(
        count(_WHERE, "epochs", epochs), count(_WHERE, "batch_size", batch_size), positive(_WHERE, "lr", lr),
        schedule_of(_WHERE, schedule), None if clip is None else positive(_WHERE, "clip", clip), _seed(seed),
    )  # fmt: skip
    patience = None if patience is None else count(_WHERE, "patience", patience)
    if not is_number(weight_decay) or not 0 <= weight_decay < float("inf"):
        raise ValueError(f"{_WHERE}: weight_decay must be a finite number from 0 on, got {weight_decay!r:.60}")
    resume, standardise = flag(_WHERE, "resume", resume), flag(_WHERE, "standardise", standardise)
    every = checked(_WHERE, flow, x, context)
    draws = torch.Generator().manual_seed(seed_of(settings.seed, "split"))
    rows, held_out = split(_WHERE, flow, every, validation, draws)
    if standardise:
        flow = standardised(flow, *rows)
    state = State(flow, _optimizer(flow, settings.lr, float(weight_decay)))
    device = next(flow.parameters()).device
    with (
        ranks(device) as group,
        reporter(_WHERE, progress, settings.epochs, group.rank == 0) as report,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        save = _checkpoints(
            state, checkpoint, resume, group,
            lambda: {
                "rows": files.fingerprint(rows), "validation rows": files.fingerprint(held_out),
                "batch_size": settings.batch_size, "lr": settings.lr, "clip": settings.clip, "seed": settings.seed,
                "schedule": schedule if isinstance(schedule, str) or schedule is None else "a function",
                "weight_decay": float(weight_decay), "standardise": standardise, "processes": group.size,
            },
        )  # fmt: skip
        stopped = _train(state, rows, held_out, settings, patience, group, save, report)
    flow.eval()
    return Fit(flow, tuple(state.train), tuple(state.validation), state.best_epoch, state.seconds, stopped)


def _train(
    state: State, rows: Rows, held_out: Rows | None, settings: Settings, patience: int | None, group: Ranks,
    save: Callable[[], None], report: Report,
) -> str:  # fmt: skip
    """Epochs until there is a reason to stop, which it returns."""
    model, modes = group.wrap(state.flow), Modes(state.flow)
    try:
        while not (why := state.why_stop(settings.epochs, patience)):
            _epoch(state, model, modes, rows, held_out, settings, group)
            save()
            report(_said(state, settings))
    except KeyboardInterrupt:
        if group.size > 1:  # the others wait for this one
            raise
        why = "interrupted"
    finally:
        state.restore()
        # Before its group, also where an error keeps this frame: DDP as a group's last owner waits for gloo's threads,
        # and they may wait for Python's lock, which it holds.
        del model
    return why


def _epoch(
    state: State, model: nn.Module, modes: Modes, rows: Rows, held_out: Rows | None, settings: Settings, group: Ranks
) -> None:
    start = time.perf_counter()
    modes.train()
    loss = train(state, model, rows, settings, group)
    if isinstance(loss, Place):
        raise _not_finite(state, settings, loss.loss, f"at step {loss.step} of {loss.steps} of")
    group.same_buffers(state.flow)
    modes.evaluate()
    value = None if held_out is None else validate(state, held_out, settings, group)
    if value is not None and not abs(value) < float("inf"):
        raise _not_finite(state, settings, value, "of the validation rows after")
    state.train.append(loss)
    state.validation += [] if value is None else [value]
    state.keep_if_best()
    state.seconds += time.perf_counter() - start


def _said(state: State, settings: Settings) -> Epoch:
    validation = state.validation[-1] if state.validation else None
    return Epoch(state.epochs, settings.epochs, state.train[-1], validation, state.best_epoch)


def _not_finite(state: State, settings: Settings, loss: float, when: str) -> FloatingPointError:
    kept = f"of epoch {state.best_epoch}" if state.best_epoch else "it began with"
    return FloatingPointError(
        f"{_WHERE}: the loss must be finite, got {loss} {when} epoch {state.epochs + 1}; the flow has the weights "
        f"{kept}. An infinite one: rows outside of what the flow can model (look at flow.transform.domain and "
        f"flow.base). NaN: try a smaller lr than {settings.lr:g}, a smaller clip, standardise=True, or float64 "
        "(flow.double(), x.double())"
    )


def _checkpoints(
    state: State, path: Path | None, resume: bool, group: Ranks, settings: Callable[[], dict[str, Any]]
) -> Callable[[], None]:
    """Goes on from a file if there is one; what writes it after an epoch."""
    state.keep()
    if path is None:
        return lambda: None
    kept = settings()
    failed, found = None, None
    if group.rank == 0 and resume:
        try:
            found = files.contents(path, kept)
        except (ValueError, ImportError, OSError) as error:
            failed = error
    failed, found = group.from_first((failed, found))
    if failed is not None:
        raise failed
    if found is not None:
        files.restore(path, state, found)
        return lambda: files.save(path, state, kept) if group.rank == 0 else None
    if group.rank == 0:  # the weights it begins with too: whoever goes on need not make the same ones
        files.save(path, state, kept)
    return lambda: files.save(path, state, kept) if group.rank == 0 else None


def _optimizer(flow: Flow, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam; the fused one where it runs."""
    parameters = [p for p in flow.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{_WHERE}: flow must have parameters that require gradients, got none of them")
    made = torch.optim.AdamW if weight_decay else torch.optim.Adam
    try:
        return made(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # a device or a dtype that it does not know
        return made(parameters, lr=lr, weight_decay=weight_decay)


def _seed(seed: object) -> int:
    if not is_whole(seed):
        raise TypeError(f"{_WHERE}: seed must be an integer, got {seed!r:.60}")
    return int(seed)  # type: ignore[call-overload]
