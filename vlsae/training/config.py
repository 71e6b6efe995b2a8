"""What a training run is made of; no torch here, so that `vlsae train --help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainConfig:
    """A complete recipe.

    Args:
        family: a registered dictionary, such as "topk" or "relu".
        n_latents: number of atoms; `expansion` times the data's width where 0.
        expansion: see there.
        k: active latents a token, for TopK families.
        l1: sparsity coefficient, times the sum of codes, for ReLU families.
        loss_scale: of the squared error: "sum" over d and mean over tokens (the papers), "patchsae" mean over tokens
            and d of the error divided by the token's norm (PatchSAE's released code), "variance" divided by the
            data's total variance (Gao et al.), "normalised" divided by each token's squared norm (MSAE's code), or
            "absolute", the mean absolute error over tokens and d (USAE's code).
        steps: optimiser steps.
        batch_size: tokens a step.
        lr: learning rate of Adam; 2e-4 / sqrt(n_latents / 2^14) where 0 (Gao et al.'s scaling).
        warmup_steps: linear rise of the learning rate.
        decay: share of the steps, at the end, over which the learning rate falls to 0.
        schedule: how it falls: "linear" or "cosine".
        beta1, beta2, adam_eps: of Adam.
        weight_decay: of AdamW, decoupled.
        dead_policy: "auxk" (Gao et al., appendix A.2), "ghost" (ghost gradients, PatchSAE), "resample" (Bricken et
            al.), "reanimation" (overcomplete) or "none"; the family's own where "".
        dead_after_tokens: a latent is dead when it has not fired for this many tokens.
        aux_k: dead latents that AuxK lets speak; the power of two nearest d/2 where 0.
        aux_coefficient: weight of AuxK.
        resample_every: steps between two resamplings with dead_policy "resample".
        input_transform: what happens to activations first, kept with the dictionary: "none", "centre", "sqrt_d",
            "centre_sqrt_d", "scalar", "standardise", "unit" or "layer_norm" (`vlsae.dictionaries.transform`).
        b_dec_init: "geometric_median", "mean", "zeros", or "none": 0 for good.
        clip_gradient: largest gradient norm; 0 for none.
        seed: of the weights, and of the order of the data unless `data_seed` is given.
        data_seed: of the order of the data; `seed` where -1.
        checkpoint_every: steps between checkpoints.
        log_every: steps between rows of train.jsonl; the last step always has one.
        objectives: names of the loss terms, separated by commas; the family's own where "".
        selection: "bfloat16" lets the fused engine find candidates in a rounded product (values stay float32): quicker
            on processors with bfloat16 instructions, dead latents then speak with rounded values; else "float32".
        options: what only some families or loss terms read, by name, such as {"experts": 8, "balance": 3.0}.
    """

    family: str = "topk"
    n_latents: int = 2048
    expansion: int = 0
    k: int = 16
    l1: float = 0.1
    loss_scale: str = "sum"
    steps: int = 2000
    batch_size: int = 2048
    lr: float = 1e-3
    warmup_steps: int = 100
    decay: float = 0.2
    schedule: str = "linear"
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    dead_policy: str = ""
    dead_after_tokens: int = 200_000
    aux_k: int = 0
    aux_coefficient: float = 1 / 32
    resample_every: int = 1000
    input_transform: str = "none"
    b_dec_init: str = "geometric_median"
    clip_gradient: float = 0.0
    selection: str = "float32"
    seed: int = 0
    data_seed: int = -1
    checkpoint_every: int = 500
    log_every: int = 50
    objectives: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: Any) -> Any:
        """An entry of `options`, or its default."""
        return self.options.get(name, default)

    @property
    def order_seed(self) -> int:
        """Seed of the order of the data."""
        return self.seed if self.data_seed < 0 else self.data_seed

    def __post_init__(self) -> None:
        choices = {
            "loss_scale": ("sum", "patchsae", "variance", "normalised", "absolute"),
            "dead_policy": ("", "auxk", "ghost", "resample", "reanimation", "none"),
            "input_transform": (
                "none",
                "centre",
                "sqrt_d",
                "centre_sqrt_d",
                "scalar",
                "standardise",
                "unit",
                "layer_norm",
            ),
            "schedule": ("linear", "cosine"),
            "selection": ("float32", "bfloat16"),
            "b_dec_init": ("geometric_median", "mean", "zeros", "none"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}.")
        if self.n_latents < 1 and self.expansion < 1:
            raise ValueError(f"n_latents={self.n_latents} must be at least 1, or expansion times the data's width.")
        for name in (
            "k",
            "steps",
            "resample_every",
            "batch_size",
            "checkpoint_every",
            "log_every",
            "dead_after_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.lr >= 0:
            raise ValueError(f"lr={self.lr} must be positive, or 0 for the width's own.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay} is a share of the steps, from 0 to 1.")
