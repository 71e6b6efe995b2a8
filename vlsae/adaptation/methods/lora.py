"""LoRA: low-rank updates of attention and MLP weights; with CLIP-LoRA's scaling and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation
from vlsae.adaptation.lora import LowRank
from vlsae.backbones.base import Backbone


@ADAPTATIONS.register("lora")
class LoRAAdaptation(Adaptation):
    """Weights `W + s B A` with learned A and B (arXiv 2106.09685, eq. 3; for CLIP arXiv 2405.18541, eq. 5).

    Args:
        base: open_clip, timm or Hugging Face towers.
        class_names: ignored; no head is bound to them.
        targets: some of "q", "k", "v", "out", "mlp".
        towers: "vision", "text" or both.
        blocks: numbers of blocks; all where None.
        rank: of the updates.
        alpha: with `scaling` gives s: alpha / sqrt(rank) for "clip_lora" and "rslora", alpha / rank for "peft".
        scaling: one of these.
        seed: of the random start.

    The recipe has CLIP-LoRA's optimiser and rate; it was published with 500 steps a shot, more than these epochs. Fewer
    steps want a larger rate: on the tiny model 12 epochs at `lr=2e-3` do better than 50 at 2e-4.
    """

    method, changes = "lora", ("vision", "text")
    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 1e-2, "epochs": 50, "batch_size": 32,
                        "warm_up_lr": 0.0}  # fmt: skip

    def __init__(
        self, base: Backbone, class_names: Sequence[str] | None = None, *, targets: Sequence[str] = ("q", "k", "v"),
        towers: Sequence[str] = ("vision", "text"), blocks: Sequence[int] | None = None, rank: int = 2,
        alpha: float = 1.0, scaling: str = "clip_lora", seed: int = 0,
    ):  # fmt: skip
        super().__init__(targets=list(targets), towers=list(towers), blocks=None if blocks is None else list(blocks),
                         rank=rank, alpha=alpha, scaling=scaling, seed=seed)  # fmt: skip
        self.changes = tuple(towers)
        self.updates = LowRank(base, **self.settings)

    def attach(self, model: Backbone) -> None:
        self.updates.inject(model)
