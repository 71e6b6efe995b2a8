"""How much of a model's loss survives a dictionary spliced into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.result import Metric
from vlsae.metrics.zero_shot import spliced_similarities

MODES = ("original", "spliced", "zeroed")


def loss_recovered(
    model: Backbone,
    dictionary: Dictionary,
    images,
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    replace: Sequence[str] = ("patch",),
    site: str | None = None,
    batch_size: int = 64,
) -> Metric:
    """`1 - (CE(spliced) - CE(original)) / (CE(zeroed) - CE(original))` of the zero-shot cross-entropy.

    1 where the reconstruction changes nothing, 0 where it is no better than zeros (arXiv 2404.16014, section 4.1).
    Finer than the accuracy, which many dictionaries leave whole.

    Args:
        model, dictionary, images, labels, class_names, templates, replace, site, batch_size: as for
            `vlsae.metrics.spliced_zero_shot`.

    Returns:
        The share, with the three cross-entropies as baselines; NaN where zeros do not raise the loss.

    Raises:
        ValueError: for unequal numbers of images and labels.

    Example:
        >>> from vlsae import load_model
        >>> from vlsae.dictionaries.projection import ProjectionDictionary
        >>> from vlsae.world import concepts, scenes
        >>> drawn, words = scenes(8, n_objects=(1, 0, 0, 0)), concepts()["object"]
        >>> labels = [words.index(scene.objects[0].name) for scene in drawn]
        >>> basis = ProjectionDictionary(192, 192, k=192)  # all coordinates: nothing is lost
        >>> found = loss_recovered(load_model("tiny"), basis, drawn, labels, words, site="vision.-2.resid_post")
        >>> round(found.value, 2)
        1.0
    """
    truth, total = torch.as_tensor(list(labels)), dict.fromkeys(MODES, 0.0)
    for mode, rows, similarity in spliced_similarities(
        model, dictionary, images, labels, class_names, templates, replace, site, batch_size, MODES
    ):
        total[mode] += F.cross_entropy(model.logit_scale * similarity, truth[rows], reduction="sum").item()
    n = len(images)
    original, spliced, zeroed = (total[mode] / max(1, n) for mode in MODES)
    value = 1 - (spliced - original) / (zeroed - original) if zeroed > original else float("nan")
    definition = "1 - (CE(spliced) - CE(original)) / (CE(zeroed) - CE(original)), zero-shot cross-entropy"
    losses = {"original": original, "spliced": spliced, "zeroed": zeroed}
    return Metric("loss_recovered", value, n, definition, "arXiv 2404.16014, section 4.1", baselines=losses)
