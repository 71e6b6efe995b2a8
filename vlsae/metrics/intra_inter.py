"""Whether a latent's images and its texts mean the same, and other latents' something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.metrics.result import Metric

REFERENCE = "arXiv 2510.21323"


def _centres(z: Tensor, embeddings: Tensor, latents: Tensor, top: int) -> Tensor:
    """Unit mean of the embeddings of each latent's strongest active rows, `[latents, e]`."""
    values, rows = z[:, latents].topk(min(top, len(z)), dim=0)
    weights = (values > 0).to(embeddings)
    return F.normalize(torch.einsum("tl,tle->le", weights, F.normalize(embeddings, dim=1)[rows]), dim=1)


def intra_inter(z_images: Tensor, z_texts: Tensor, images: Tensor, texts: Tensor, top: int = 10) -> dict[str, Metric]:
    """Cosine of the mean embeddings of a latent's top images and top texts, and the same across latents.

    `intra = mean_i cos(v_i, t_i)`, `inter = mean_{i != j} cos(v_i, t_j)`, with `v_i` the mean unit embedding of the `top`
    images on which latent `i` fires most, `t_i` that of texts. Over latents that fire in both modalities; both orders of
    `i` and `j` count, of which the released code takes one.

    Args:
        z_images, z_texts: codes `[N, n]` and `[M, n]`.
        images, texts: embeddings `[N, e]` and `[M, e]` by the model that judges; not the one explained, if possible.
        top: rows a latent.

    Returns:
        Metrics "intra" (higher is better), "inter" (lower is better) and "shared", the share of latents that fire in
        both modalities among those that fire at all; NaN where fewer than two do.

    Raises:
        ValueError: for embeddings that are not of the coded rows.

    Example:
        >>> scores = intra_inter(torch.eye(3), torch.eye(3), torch.eye(3), torch.eye(3))
        >>> scores["intra"].value, scores["inter"].value
        (1.0, 0.0)
    """
    for name, z, x in (("images", z_images, images), ("texts", z_texts, texts)):
        if len(z) != len(x):
            raise ValueError(f"{len(z)} codes and {len(x)} embeddings of {name} were given; give one a row.")
    fires = (z_images > 0).any(0), (z_texts > 0).any(0)
    both = (fires[0] & fires[1]).nonzero()[:, 0]
    n = len(both)
    intra = inter = float("nan")
    if n > 1:
        cosines = _centres(z_images, images, both, top) @ _centres(z_texts, texts, both, top).T
        total, own = float(cosines.double().sum()), float(cosines.double().diagonal().sum())
        intra, inter = own / n, (total - own) / (n * (n - 1))
    alive = int((fires[0] | fires[1]).sum())
    return {
        "intra": Metric("intra", intra, n, f"mean cosine of a latent's top {top} images and texts", REFERENCE),
        "inter": Metric("inter", inter, n, "the same of different latents", REFERENCE, higher_is_better=False),
        "shared": Metric("shared", n / alive if alive else float("nan"), alive,
                         "share of active latents that fire in both modalities"),
    }  # fmt: skip
