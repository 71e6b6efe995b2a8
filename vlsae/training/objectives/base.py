"""The contract of a term of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.registry import Registry
from vlsae.training.config import TrainConfig

OBJECTIVES = Registry("objective", "vlsae.training.objectives")


@dataclass
class Step:
    """The tensors of one step.

    Attributes:
        x, xhat: `[B, d]`; pre, z: `[B, n_latents]`; dead: `[n_latents]` bool.
        extras: what this family's `trace` adds, by name.
        target: `[B, d]`, what `xhat` should be; `x` where not given.
    """

    dictionary: Dictionary
    x: Tensor
    pre: Tensor
    z: Tensor
    xhat: Tensor
    dead: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    target: Tensor | None = None

    def __post_init__(self) -> None:
        if self.target is None:
            self.target = self.x


@dataclass(frozen=True)
class Start:
    """What is known of the data before the first step: their width, total variance `E||x - mean||^2`, and where from."""

    d: int
    variance: float
    data: Any = None


class Objective:
    """One named term: `__call__(step)` returns a scalar with gradient.

    `make` reads what it needs from the recipe; `state` holds what changes during a run, as plain numbers, so that a
    resumed run goes on exactly.
    """

    name: str
    options: tuple[str, ...] = ()  # names it reads from `TrainConfig.options`

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Objective:
        return cls()

    def __call__(self, step: Step) -> Tensor:
        raise NotImplementedError

    @property
    def state(self) -> dict[str, float]:
        return {}

    @state.setter
    def state(self, values: dict[str, float]) -> None:
        pass


@torch.no_grad()
def explained_variance(x: Tensor, xhat: Tensor) -> Tensor:
    """Centred share of the variance of a batch that is explained, `1 - sum||x - xhat||^2 / sum||x - mean||^2`."""
    return 1 - F.mse_loss(xhat, x, reduction="sum") / (x - x.mean(0)).square().sum()
