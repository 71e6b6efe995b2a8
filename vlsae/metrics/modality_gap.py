"""How far apart the two modalities of a joint space lie."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vlsae.metrics.result import Metric


def centred_modalities(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings less the mean of their modality, made unit again: the control that closes the gap without a dictionary.

    `x_m = u_m / ||u_m||`, `u_m = x^_m - mean(x^_m)`.

    Args:
        images, texts: `[N, d]` and `[M, d]`.

    Returns:
        Both, unit rows.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 4)
        >>> a, b = centred_modalities(x, x)
        >>> torch.equal(a, b)
        True
    """
    unit = [F.normalize(x, dim=1) for x in (images, texts)]
    image, text = (F.normalize(x - x.mean(0), dim=1) for x in unit)
    return image, text


def modality_gap(images: Tensor, texts: Tensor) -> Metric:
    """Distance of the modalities' centres, `||mean(x^_v) - mean(x^_t)||`.

    Args:
        images, texts: `[N, d]` and `[M, d]`, of one space; made unit first.

    Returns:
        The metric, 0 to 2.

    Example:
        >>> import torch
        >>> modality_gap(torch.tensor([[3.0, 0.0]]), torch.tensor([[-1.0, 0.0]])).value
        2.0
    """
    centres = [F.normalize(x.double(), dim=1).mean(0) for x in (images, texts)]
    return Metric(
        "modality_gap",
        float((centres[0] - centres[1]).norm()),
        len(images) + len(texts),
        "||mean of unit image embeddings - mean of unit text embeddings||",
        "Liang et al. 2022, arXiv 2203.02053",
        higher_is_better=False,
    )
