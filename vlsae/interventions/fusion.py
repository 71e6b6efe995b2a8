"""VL-SAE's correction of what a model says by what it sees: codes fused, text moved, logits mixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlsae.dictionaries.vl_sae import VLSAE
from vlsae.training.alignment import AlignmentAutoencoder


def fuse_codes(z_text: Tensor, z_image: Tensor, beta: float, mode: str = "add") -> Tensor:
    """A text's code with the image's in it: `z_t + beta z_v` ("add") or `(1 - beta) z_t + beta z_v` ("convex").

    The paper writes the sum (arXiv 2510.21323, equation 11), its released code the convex form with beta .9.

    Args:
        z_text, z_image: codes `[..., n_latents]`.
        beta: weight of the image.
        mode: "add" or "convex".

    Raises:
        ValueError: for another mode.

    Example:
        >>> fuse_codes(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5, "convex").tolist()
        [0.5, 0.5]
    """
    if mode not in ("add", "convex"):
        raise ValueError(f"mode={mode!r} is unknown; use 'add' or 'convex'.")
    return (z_text if mode == "add" else (1 - beta) * z_text) + beta * z_image


@torch.no_grad()
def fused_text(
    sae: VLSAE,
    text: Tensor,
    image: Tensor,
    *,
    alpha: float = 0.8,
    beta: float = 0.9,
    mode: str = "convex",
    maps: AlignmentAutoencoder | None = None,
) -> Tensor:
    """A text's vector moved towards what its image shows, `(1 - alpha) x_t + alpha D_t(fused code)`.

    The defaults are those of the released script. In a language model, the difference to `text`, the mean over text
    tokens, is added to every one of them (arXiv 2510.21323, equation 11).

    Args:
        sae: trained on both modalities.
        text, image: `[..., d]`, or of the widths of `maps`.
        alpha: share that is replaced; 0 leaves the text as it is.
        beta, mode: of `fuse_codes`.
        maps: the alignment autoencoder behind which `sae` was trained, where there is one.

    Returns:
        As `text`.

    Raises:
        ValueError: for another mode or width.

    Example:
        >>> sae, x = VLSAE(4, 8, k=2), torch.randn(3, 4)
        >>> torch.equal(fused_text(sae, x, x, alpha=0.0), x)
        True
    """
    joint = (text, image) if maps is None else (maps.encode(text, "text"), maps.encode(image, "image"))
    z = fuse_codes(sae.encode(joint[0]), sae.encode(joint[1]), beta, mode)
    said = sae.decode(z, like=joint[0], modality="text")
    return (1 - alpha) * text + alpha * (said if maps is None else maps.decode(said, "text"))


def mix_logits(base: Tensor, edited: Tensor, alpha: float = 0.6, cutoff: float = 0.8) -> Tensor:
    """Next-token logits between base and edited model, `(1 - alpha) l + alpha l'`, where the base finds them plausible.

    Tokens with `l < max l + log cutoff`, less than `cutoff` times as probable as the base's best, are ruled out. The
    defaults are those of the released script.

    Args:
        base, edited: `[..., vocabulary]`.
        alpha: 0 gives the base, 1 the edited model.
        cutoff: above 0 to 1; 1 keeps only the base's best.

    Returns:
        `[..., vocabulary]`, -inf where ruled out.

    Raises:
        ValueError: for a cutoff outside its range.

    Example:
        >>> mix_logits(torch.tensor([2.0, 1.9, 0.0]), torch.tensor([0.0, 4.0, 9.0]), alpha=0.5).tolist()
        [1.0, 2.950000047683716, -inf]
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff={cutoff} is a share of the largest probability; give more than 0 and at most 1.")
    plausible = base >= base.amax(-1, keepdim=True) + math.log(cutoff)
    return torch.where(plausible, (1 - alpha) * base + alpha * edited, -torch.inf)
