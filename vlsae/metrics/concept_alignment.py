"""Matching images and texts by embeddings, by codes, and by both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.metrics.paired_activation import require_pairs
from vlsae.metrics.result import Metric


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of all images `[N, d]` with all texts `[M, d]`, of embeddings or of codes; `[N, M]`.

    Example:
        >>> similarities(torch.eye(2), 3 * torch.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def align_scores(images: Tensor, texts: Tensor, z_images: Tensor, z_texts: Tensor, alpha: float) -> Tensor:
    """VL-SAE's score of an image and a text, `cos(x_v, x_t) + alpha cos(z_v, z_t)` (arXiv 2510.21323, equation 10).

    Args:
        images, texts: embeddings `[N, d]` and `[M, d]`.
        z_images, z_texts: their codes `[N, n]` and `[M, n]`.
        alpha: weight of the codes; 0 gives the model's own score. Choose it on other data than is scored.

    Returns:
        `[N, M]`.

    Example:
        >>> x = torch.eye(2)
        >>> align_scores(x, x, x, x, alpha=0.5)[0].tolist()
        [1.5, 0.0]
    """
    return similarities(images, texts) + alpha * similarities(z_images, z_texts)


def classification(scores: Tensor, labels: Tensor) -> Metric:
    """Share of images whose best text is their class, `mean [argmax_c s_ic = y_i]`.

    Args:
        scores: `[N, classes]`, such as `align_scores` of images and class texts.
        labels: `[N]`, numbers of the classes.

    Raises:
        ValueError: for another number of labels than images.

    Example:
        >>> classification(torch.eye(2), torch.tensor([0, 0])).value
        0.5
    """
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} images and {len(labels)} labels were given; give one label an image.")
    right = (scores.argmax(1) == labels).float().mean()
    return Metric("classification", float(right), len(labels), "share of images whose best text is that of their class")


def retrieval(scores: Tensor) -> dict[str, Metric]:
    """Share of images that rank their own text first, and of texts that rank their own image first (R@1).

    An own partner counts only where it is strictly better than all others, so that equal scores are no hits.

    Args:
        scores: `[N, N]`, row `i` and column `i` of a pair.

    Returns:
        Metrics "image_to_text" and "text_to_image".

    Raises:
        ValueError: for scores that are not square.

    Example:
        >>> retrieval(torch.eye(3))["image_to_text"].value
        1.0
    """
    require_pairs(scores, scores.T)
    own = scores.diagonal()
    others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -torch.inf)
    return {
        name: Metric(name, float((own > others.amax(axis)).float().mean()), len(scores), f"R@1, {words}")
        for name, axis, words in (
            ("image_to_text", 1, "share of images with their own text strictly first"),
            ("text_to_image", 0, "share of texts with their own image strictly first"),
        )
    }
