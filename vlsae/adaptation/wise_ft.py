"""WiSE-FT: weights between a model and its fine-tuned version."""

from __future__ import annotations

import torch

from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.methods.full import FullFineTuning
from vlsae.backbones.base import Backbone


@torch.no_grad()
def interpolate(base: Backbone, adapted: AdaptedBackbone, alpha: float) -> AdaptedBackbone:
    """A model with weights `(1 - alpha) theta_0 + alpha theta_1` (WiSE-FT, CVPR 2022, arXiv 2109.01903, eq. 1).

    Args:
        base: with weights theta_0.
        adapted: with weights theta_1, by `adapt(base, ..., "full")`.
        alpha: from 0, the base bit for bit, to 1, the fine-tuned model bit for bit.

    Returns:
        An adaptation "full" of `base`, whose settings say `alpha`.

    Raises:
        ValueError: for an adaptation of another method or another model, or an alpha outside [0, 1].

    Example:
        >>> from vlsae import load_model
        >>> base = load_model("tiny")
        >>> half = interpolate(base, AdaptedBackbone(base, FullFineTuning(base)), 0.5)
        >>> half.adaptation.settings["alpha"]
        0.5
    """
    tuned = adapted.adaptation
    if not isinstance(tuned, FullFineTuning):
        raise ValueError(f"The adapted model is a {tuned.method}; only weights of method 'full' can be interpolated.")
    if adapted.original is not base and adapted.original.weight_hash != base.weight_hash:
        raise ValueError(f"{adapted.spec} was tuned from other weights than those of {base.spec}; give its own base.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be from 0 (the base model) to 1 (the fine-tuned one).")
    between = FullFineTuning(base, towers=tuned.changes, alpha=alpha * tuned.settings["alpha"]).to(base.device)
    for name, theta in between.weights.items():
        theta.copy_((1 - alpha) * theta + alpha * tuned.weights[name])
    return AdaptedBackbone(base, between)
