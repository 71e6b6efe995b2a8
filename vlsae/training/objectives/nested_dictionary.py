"""The error of every prefix of a Matryoshka dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step
from vlsae.training.objectives.reconstruction import Reconstruction


@OBJECTIVES.register("nested_dictionary")
class NestedDictionary(Objective):
    """`sum_i w_i L(x, z_{0:m_i} W_dec_{0:m_i} + b_dec)` over the prefixes `m_i` of `NestedDictionaryMatryoshka`.

    Bussmann et al. 2025 (arXiv 2503.17547), section 3. A prefix adds its own latents to the reconstruction of the one
    before, so all of them cost one decoding. `sort_latents` (with `random`, as in the paper's toy model) renumbers
    latents by their energy after every step.

    Args:
        reconstruction: the error of one prefix.
        weights: "equal" (`w_i = 1`) or "size" (`w_i = m_i / n`).
        random: number of prefixes drawn anew each step from a Pareto law of index 1/2, beside the whole
            dictionary; 0 for the dictionary's own.
        seed: of the draws.

    Raises:
        ValueError: for other weights.
    """

    name = "nested_dictionary"
    options = ("prefix_weights", "random_prefixes", "sort_latents")

    def __init__(self, reconstruction: Reconstruction, weights: str = "equal", random: int = 0, seed: int = 0):
        if weights not in ("equal", "size"):
            raise ValueError(f"prefix_weights={weights!r} is unknown; use 'equal' or 'size'.")
        self.reconstruction, self.weights, self.random, self.seed, self.step = reconstruction, weights, random, seed, 0

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> NestedDictionary:
        option = config.option
        error = Reconstruction.make(config, start)
        return cls(error, option("prefix_weights", "equal"), option("random_prefixes", 0), config.seed)

    @property
    def state(self) -> dict[str, float]:
        return {"step": self.step}

    @state.setter
    def state(self, values: dict[str, float]) -> None:
        self.step = int(values["step"])

    def prefixes(self, step: Step) -> list[int]:
        """The widths of this step."""
        if not self.random:
            return step.dictionary.prefixes
        n = step.dictionary.n_latents
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        uniform = torch.rand(self.random - 1, generator=generator)
        drawn = (1 - uniform * (1 - n**-0.5)) ** -2  # the inverse of the law truncated at n
        return sorted({n, *drawn.long().clamp(1, n).tolist()})

    def __call__(self, step: Step) -> Tensor:
        sae, xhat, loss, begin = step.dictionary, step.dictionary.b_dec, 0.0, 0
        for end in self.prefixes(step):
            xhat = xhat + step.z[:, begin:end] @ sae.W_dec[begin:end]
            weight = end / sae.n_latents if self.weights == "size" else 1.0
            loss = loss + weight * self.reconstruction.error(step.target, xhat)
            begin = end
        self.step += 1
        return loss
