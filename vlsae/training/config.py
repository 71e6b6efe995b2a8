"""What a training run is made of; no torch here, so that `vlsae train --help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainConfig:
    """A complete recipe.

    Args:
        family: a registered dictionary, such as "topk" or "relu".
        n_latents: number of atoms.
        k: active latents a token, for TopK families.
        l1: sparsity coefficient, times the sum of codes, for ReLU families.
        loss_scale: of the squared error: "sum" over d and mean over tokens (the papers), "patchsae" mean over tokens
            and d of the error divided by the token's norm (PatchSAE's released code), "variance" divided by the
            data's total variance (Gao et al.), or "normalised" divided by each token's squared norm (MSAE's code).
        steps: optimiser steps.
        batch_size: tokens a step.
        lr: learning rate of Adam.
        warmup_steps: linear rise of the learning rate.
        decay: share of the steps, at the end, over which the learning rate falls linearly to 0.
        dead_policy: "auxk" (Gao et al., appendix A.2), "ghost" (ghost gradients, PatchSAE) or "none"; the family's
            own where "".
        dead_after_tokens: a latent is dead when it has not fired for this many tokens.
        aux_k: dead latents that AuxK lets speak; the power of two nearest d/2 where 0.
        aux_coefficient: weight of AuxK.
        input_transform: what happens to activations first, kept with the dictionary: "none", "centre", "sqrt_d",
            "centre_sqrt_d", "standardise", "unit" or "layer_norm" (`vlsae.dictionaries.transform`).
        b_dec_init: "geometric_median", "mean" or "zeros".
        clip_gradient: largest gradient norm; 0 for none.
        seed: of weights and data order.
        checkpoint_every: steps between checkpoints.
        log_every: steps between rows of train.jsonl; the last step always has one.
        objectives: names of the loss terms, separated by commas; the family's own where "".
        options: what only some families or loss terms read, by name, such as {"experts": 8, "balance": 3.0}.
    """

    family: str = "topk"
    n_latents: int = 2048
    k: int = 16
    l1: float = 0.1
    loss_scale: str = "sum"
    steps: int = 2000
    batch_size: int = 2048
    lr: float = 1e-3
    warmup_steps: int = 100
    decay: float = 0.2
    dead_policy: str = ""
    dead_after_tokens: int = 200_000
    aux_k: int = 0
    aux_coefficient: float = 1 / 32
    input_transform: str = "none"
    b_dec_init: str = "geometric_median"
    clip_gradient: float = 0.0
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    objectives: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: Any) -> Any:
        """An entry of `options`, or its default."""
        return self.options.get(name, default)

    def __post_init__(self) -> None:
        choices = {
            "loss_scale": ("sum", "patchsae", "variance", "normalised"),
            "dead_policy": ("", "auxk", "ghost", "none"),
            "input_transform": ("none", "centre", "sqrt_d", "centre_sqrt_d", "standardise", "unit", "layer_norm"),
            "b_dec_init": ("geometric_median", "mean", "zeros"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}.")
        for name in ("n_latents", "k", "steps", "batch_size", "checkpoint_every", "log_every", "dead_after_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay} is a share of the steps, from 0 to 1.")


PRESETS: dict[str, dict[str, Any]] = {
    # PatchSAE's shipped script: 128 images x 197 tokens a step, ghost gradients after 64 silent steps
    "patchsae": {
        "family": "relu",
        "n_latents": 49_152,
        "l1": 8e-5,
        "loss_scale": "patchsae",
        "lr": 4e-4,
        "warmup_steps": 500,
        "decay": 0.0,
        "batch_size": 25_216,
        "steps": 20_480,
        "dead_policy": "ghost",
        "dead_after_tokens": 64 * 25_216,
    },
    # Gao et al. 2024: variance-scaled loss, AuxK 1/32, dead after 10 M tokens
    "topk": {
        "family": "topk",
        "k": 32,
        "n_latents": 32_768,
        "loss_scale": "variance",
        "lr": 1e-4,
        "decay": 0.0,
        "batch_size": 131_072,
        "dead_after_tokens": 10_000_000,
        "aux_k": 512,
    },
}
