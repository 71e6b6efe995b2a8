"""Tokens of several models together, for one dictionary that fits them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlsae.adaptation.comparison.site_tokens import ROLES, SiteTokens, image_batches
from vlsae.backbones.base import Backbone


def joint_tokens(
    models: Sequence[Backbone], images: Sequence, site: str = "vision.-2.resid_post", *,
    roles: Sequence[str] = ROLES, batch_size: int = 32,
    progress: bool = True,
) -> Tensor:  # fmt: skip
    """The tokens of the same images in every model, prompts left out, in memory: `[models x images x T, d]`.

    `vlsae.train(joint_tokens([base, adapted], images), ...)` gives a dictionary that both models are fair to; pass
    `site=` to `compare`, since a tensor does not say where it was read.

    Args:
        models: of one width.
        images: sequence of images or scenes.
        site: of the vision tower.
        roles: of the tokens.
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
    parts = [
        SiteTokens(model, site, roles).read(model.pixels(batch)).flatten(0, 1).cpu()
        for model in models
        for _, batch in image_batches(images, batch_size, f"tokens of {model.spec}", progress)
    ]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise ValueError(f"The models' tokens at {site} are {sorted(widths)} wide; one dictionary reads one width.")
    return torch.cat(parts)
