"""Codes that are good at other numbers of latents, too."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step
from vlsae.training.objectives.reconstruction import Reconstruction


@OBJECTIVES.register("multi_topk")
class MultiTopK(Objective):
    """`weight * error(x, TopK_{m k}(pre) W_dec + b_dec)` for TopK dictionaries, `m = 4` and weight 1/8.

    Gao et al. 2024 (arXiv 2406.04093, section 5.4): a dictionary trained at one `k` alone gets worse beyond it. Use
    with `objectives="reconstruction,multi_topk"`.

    Raises:
        ValueError: for a family without `k`.
    """

    name = "multi_topk"
    options = ("multi", "multi_weight")

    def __init__(self, error: Reconstruction, multiple: int = 4, weight: float = 1 / 8):
        self.error, self.multiple, self.weight = error, multiple, weight

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> MultiTopK:
        return cls(Reconstruction.make(config, start), config.option("multi", 4), config.option("multi_weight", 1 / 8))

    def __call__(self, step: Step) -> Tensor:
        sae = step.dictionary
        if not hasattr(sae, "k"):
            raise ValueError(f"{sae.family!r} has no k; 'multi_topk' is for TopK families.")
        values, order = step.pre.topk(min(self.multiple * sae.k, sae.n_latents), dim=-1, sorted=False)
        z = torch.zeros_like(step.pre).scatter(-1, order, torch.relu(values))
        return self.weight * self.error.error(step.target, sae._decode(z))
