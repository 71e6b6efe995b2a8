"""Tokens of several models together, for one dictionary that fits them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.backbones.base import Backbone


def joint_tokens(
    models: Sequence[Backbone], images: Sequence, site: str = "vision.-2.resid_post", *, batch_size: int = 32,
    progress: bool = True,
) -> Tensor:  # fmt: skip
    """The tokens of the same images in every model, prompts left out, in memory: `[models x images x T, d]`.

    `vlsae.train(joint_tokens([base, adapted], images), ...)` gives a dictionary that both models are fair to; pass
    `site=` to `compare`, since a tensor does not say where it was read.

    Args:
        models: of one width.
        images: sequence of images or scenes.
        site: of the vision tower.
        batch_size: images a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: for no models or images, or models of unequal widths.

    Example:
        >>> from vlsae import load_model, world
        >>> tiny = load_model("tiny")
        >>> joint_tokens([tiny, tiny], world.scenes(2), progress=False).shape
        torch.Size([260, 192])
    """
    if not len(models) or not len(images):
        raise ValueError(f"{len(models)} models and {len(images)} images were given; give at least one of each.")
    parts = []
    for model in models:
        own = [i for i, role in enumerate(model.token_roles) if role != "prompt"]
        for start in tqdm(range(0, len(images), batch_size), desc=f"tokens of {model.spec}", disable=not progress):
            batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
            parts.append(model.tokens(batch, site)[:, own].flatten(0, 1).cpu())
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise ValueError(f"The models' tokens at {site} are {sorted(widths)} wide; one dictionary reads one width.")
    return torch.cat(parts)
