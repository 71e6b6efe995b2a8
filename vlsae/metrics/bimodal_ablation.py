"""What the latents of one modality, and those of both, carry: gap and alignment without them."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.concept_alignment import retrieval, similarities
from vlsae.metrics.modality_gap import centred_modalities, modality_gap
from vlsae.metrics.modality_score import bimodal_latents
from vlsae.metrics.paired_activation import require_pairs
from vlsae.metrics.result import Metric


def without_latents(dictionary: Dictionary, x: Tensor, removed: Tensor) -> Tensor:
    """Activations without what some latents add, the error kept: `x + decode(z without them) - decode(z)`.

    Args:
        dictionary: of these activations.
        x: `[N, d]`.
        removed: bool `[n_latents]`.

    Returns:
        `[N, d]`.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(without_latents(TopKDictionary(4, 8, k=2), x, torch.zeros(8, dtype=torch.bool)), x)
        True
    """
    z = dictionary.encode(x)
    return x + dictionary.decode(z * ~removed, like=x) - dictionary.decode(z, like=x)


@torch.no_grad()
def bimodal_ablation(
    dictionary: Dictionary,
    images: Tensor,
    texts: Tensor,
    *,
    text_dictionary: Dictionary | None = None,
    threshold: float = 0.8,
    seed: int = 0,
) -> dict[str, dict[str, Metric]]:
    """Modality gap and retrieval without unimodal latents, without bimodal ones, and without as many random ones.

    The claim tested (arXiv 2602.06218): latents of one modality make up the gap, so that it closes without them, and
    those of both carry the alignment, which goes with them. "centred" closes the gap without any dictionary.

    Args:
        dictionary: of both modalities, or of images where `text_dictionary` is given (a VL-SAE's two views).
        images, texts: pairs of embeddings `[N, d]`.
        text_dictionary: of texts, with the same latents; `dictionary` where None.
        threshold: largest |modality score| of a bimodal latent.
        seed: of the random latents.

    Returns:
        By condition ("original", "without unimodal", "without bimodal", "without random", "centred") the metrics
        "modality_gap" and "image_to_text".

    Raises:
        ValueError: for embeddings that are no pairs.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> x = torch.randn(20, 4)
        >>> found = bimodal_ablation(TopKDictionary(4, 8, k=2), x, x)
        >>> found["original"]["modality_gap"].value, found["original"]["image_to_text"].value
        (0.0, 1.0)
    """
    require_pairs(images, texts)
    other = text_dictionary or dictionary
    z_images, z_texts = dictionary.encode(images), other.encode(texts)
    bimodal = bimodal_latents(z_images, z_texts, threshold)
    alive = (z_images != 0).any(0) | (z_texts != 0).any(0)
    unimodal = alive & ~bimodal
    among = alive.nonzero()[:, 0].cpu()
    drawn = among[torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))[: int(unimodal.sum())]]
    chance = torch.zeros_like(alive)
    chance[drawn] = True
    sides = {"original": (images, texts), "centred": centred_modalities(images, texts)}
    for name, removed in (("unimodal", unimodal), ("bimodal", bimodal), ("random", chance)):
        left = without_latents(dictionary, images, removed), without_latents(other, texts, removed)
        sides[f"without {name}"] = left
    return {
        name: {
            "modality_gap": modality_gap(image, text),
            "image_to_text": retrieval(similarities(image, text))["image_to_text"],
        }
        for name, (image, text) in sides.items()
    }
