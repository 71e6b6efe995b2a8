"""The weighted error of nested sparsity levels."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step
from vlsae.training.objectives.reconstruction import Reconstruction


@OBJECTIVES.register("nested_sparsity")
class NestedSparsity(Objective):
    """`sum_i a_i error(x, xhat_i) / sum_i a_i` over the levels `i = 1..h`, sparsest first (MSAE, arXiv 2502.20578).

    Option "nesting": "uniform", `a_i = 1`; "reverse", `a_i = h - i + 1`, most weight on the sparsest level.

    Args:
        error: how one reconstruction is measured.
        nesting: "uniform" or "reverse".

    Raises:
        ValueError: for another nesting, or a family without levels.

    Example:
        >>> NestedSparsity(Reconstruction("sum"), "reverse").weights(3).tolist()
        [0.5, 0.333..., 0.166...]
    """

    name = "nested_sparsity"
    options = ("nesting",)

    def __init__(self, error: Reconstruction, nesting: str = "uniform"):
        if nesting not in ("uniform", "reverse"):
            raise ValueError(f'nesting={nesting!r} is unknown; use "uniform" or "reverse".')
        self.error, self.nesting = error, nesting

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> NestedSparsity:
        return cls(Reconstruction.make(config, start), config.option("nesting", "uniform"))

    def weights(self, h: int) -> Tensor:
        """The share of each of `h` levels, `[h]`, adding up to 1."""
        raw = torch.ones(h) if self.nesting == "uniform" else torch.arange(h, 0, -1, dtype=torch.float32)
        return raw / raw.sum()

    def __call__(self, step: Step) -> Tensor:
        if "levels" not in step.extras:
            raise ValueError(
                f"{step.dictionary.family!r} has no levels to weigh; train a 'nested_sparsity' dictionary."
            )
        levels = step.extras["levels"]
        errors = torch.stack([self.error.error(step.target, level) for level in levels])
        return self.weights(len(levels)).to(errors) @ errors
