"""How far a training has come: what a checkpoint holds, and all that the next epoch depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from flowkernels.flows import Flow


@dataclass
class State:
    flow: Flow
    optimizer: Optimizer
    train: list[float] = field(default_factory=list)  # per epoch, in nats
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)  # weights and buffers after that epoch
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.train)

    def keep_if_best(self) -> None:
        """Copies the weights if no epoch has been better; without validation rows the last one is best."""
        if not self.validation or self.best_epoch == 0 or self.validation[-1] < self.validation[self.best_epoch - 1]:
            self.best_epoch = self.epochs
            self.keep()

    def keep(self) -> None:
        self.best = {name: t.detach().clone() for name, t in self.flow.state_dict().items()}

    def restore(self) -> None:
        """Puts the best weights into the flow."""
        self.flow.load_state_dict(self.best)

    def why_stop(self, epochs: int, patience: int | None) -> str:
        """The reason to train no more, or nothing."""
        if self.epochs >= epochs:
            return "epochs"
        waited = self.epochs - self.best_epoch
        return "patience" if patience is not None and self.validation and waited >= patience else ""
