"""Whether a latent says the same of an image and of its text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vlsae.metrics.result import Metric


def require_pairs(images: Tensor, texts: Tensor) -> None:
    """Raise ValueError unless row `i` of one can belong to row `i` of the other."""
    if images.shape != texts.shape:
        raise ValueError(
            f"Images have shape {tuple(images.shape)} and texts {tuple(texts.shape)}; give pairs, row by row, of one width."
        )


def paired_correlation(z_images: Tensor, z_texts: Tensor) -> Tensor:
    """Correlation over pairs of a latent's activation on the image and on the text, `corr(z_v,i, z_t,i)`.

    Args:
        z_images, z_texts: `[N, n]`, row by row of a pair.

    Returns:
        `[n]`; NaN for latents that do not vary in both.

    Raises:
        ValueError: for codes that are no pairs.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
        >>> paired_correlation(z, torch.tensor([[0.0, 0.0], [2.0, 1.0], [4.0, 0.0]])).tolist()
        [1.0, -1.0]
    """
    require_pairs(z_images, z_texts)
    a, b = (z.double() - z.double().mean(0) for z in (z_images, z_texts))
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()


def activation_consistency(z_images: Tensor, z_texts: Tensor) -> dict[str, Metric]:
    """How alike the codes of the two sides of a pair are, beside the same for other pairs.

    `cosine = E cos(z_v, z_t)`, `iou = E |S_v and S_t| / |S_v or S_t|`; the baseline takes the next row's text.

    Args:
        z_images, z_texts: `[N, n]`, row by row of a pair.

    Returns:
        Metrics "code_cosine" and "code_iou", with `baselines["other pair"]`.

    Raises:
        ValueError: for codes that are no pairs.

    Example:
        >>> import torch
        >>> activation_consistency(torch.eye(2), torch.eye(2))["code_iou"].baselines
        {'other pair': 0.0}
    """
    require_pairs(z_images, z_texts)

    def measure(texts: Tensor) -> tuple[float, float]:
        here, there = z_images != 0, texts != 0
        iou = (here & there).sum(1) / (here | there).sum(1).clamp_min(1)
        return float(F.cosine_similarity(z_images, texts, dim=1).mean()), float(iou.float().mean())

    paired, other = measure(z_texts), measure(z_texts.roll(-1, 0))
    names = (("code_cosine", "mean over pairs of cos(z_v, z_t)"),
             ("code_iou", "mean over pairs of |S_v and S_t| / |S_v or S_t|"))  # fmt: skip
    return {
        name: Metric(name, paired[i], len(z_images), words, "arXiv 2510.21323", baselines={"other pair": other[i]})
        for i, (name, words) in enumerate(names)
    }
