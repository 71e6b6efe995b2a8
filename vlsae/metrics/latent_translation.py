"""Whether the latent of a concept in images is its latent in texts."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vlsae.metrics.matching import correlations
from vlsae.metrics.result import Metric


def latent_translation(
    z_images: Tensor, image_labels: Tensor, z_texts: Tensor, text_labels: Tensor
) -> dict[str, Metric]:
    """For each concept: is the latent that tells it in images the one that tells it in texts?

    A concept's latent in a modality is the one of the largest correlation with the concept's presence. same_latent: share
    of concepts whose two latents are one. translated: share of concepts whose image latent, read in texts, correlates
    most with that very concept; it forgives a second latent of one word, not a latent of another word.

    Args:
        z_images, z_texts: codes of one dictionary, or of two after matching, `[N, n]` and `[M, n]`; no pairs needed.
        image_labels, text_labels: bool `[N, C]` and `[M, C]`, which concepts are there.

    Returns:
        Metrics "same_latent" and "translated" over the concepts that are there and not always there in both; the
        baseline "other concept" takes the next concept's text latent, or text, instead of its own.

    Raises:
        ValueError: for codes or labels that do not fit together, or no concept left.

    Example:
        >>> import torch
        >>> labels = torch.eye(3, dtype=torch.bool)
        >>> latent_translation(torch.eye(3), labels, torch.eye(3), labels)["same_latent"].value
        1.0
    """
    if z_images.shape[1] != z_texts.shape[1] or image_labels.shape[1] != text_labels.shape[1]:
        raise ValueError(
            f"Codes have {z_images.shape[1]} and {z_texts.shape[1]} latents, labels {image_labels.shape[1]} and "
            f"{text_labels.shape[1]} concepts; give the same latents and concepts for both modalities."
        )
    varies = [labels.any(0) & ~labels.all(0) for labels in (image_labels, text_labels)]
    kept = varies[0] & varies[1]
    count = int(kept.sum())
    if count < 2:
        raise ValueError(f"{count} concepts are there in some images and some texts and not in all; give at least 2.")
    in_images = correlations(z_images, image_labels[:, kept])
    in_texts = correlations(z_texts, text_labels[:, kept])
    of_image, of_text = in_images.argmax(0), in_texts.argmax(0)
    read, own = in_texts[of_image].argmax(1), np.arange(count)
    spoken = in_texts[of_image].max(1) > 0  # a latent silent in texts tells no concept, not the first one

    def share(hit: np.ndarray) -> float:
        return float(hit.mean())

    return {
        "same_latent": Metric(
            "same_latent", share((of_image == of_text) & spoken), count,
            "share of concepts whose latent of largest correlation is the same in images and in texts",
            baselines={"other concept": share((of_image == np.roll(of_text, 1)) & spoken)},
        ),
        "translated": Metric(
            "translated", share((read == own) & spoken), count,
            "share of concepts whose image latent correlates in texts with that concept most",
            baselines={"other concept": share((read == np.roll(own, 1)) & spoken)},
        ),
    }  # fmt: skip
