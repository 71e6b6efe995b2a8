"""The demo's concept tree: which latents of a nested dictionary imply which, scored against the scenes' true hierarchy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vlsae.activations.reader import ActivationStore
from vlsae.backbones.base import Backbone
from vlsae.concepts.hierarchy import Forest, concept_forest
from vlsae.concepts.naming import LatentName, name_latents
from vlsae.concepts.statistics import LatentStatistics, latent_statistics
from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.matching import best_partners
from vlsae.metrics.result import Metric
from vlsae.metrics.tree_recovery import tree_recovery
from vlsae.training.loop import train
from vlsae.world import Scenes, concept_hierarchy

SHARES = (1 / 16, 5 / 16, 1.0)  # of the latents, in the prefixes of the dictionary
RULES = {"min_conditional": 0.5, "min_lift": 4.0}
SCORED = ("group", "object")


@dataclass(frozen=True)
class HierarchyResult:
    """A forest over the latents of a nested dictionary.

    Attributes:
        dictionary: the nested one; names and statistics: of its latents, with top images on the held-out scenes.
        forest: over its latents, by their activations on patches of the held-out scenes.
        metrics: ancestors recovered, for `metrics.json`.
    """

    dictionary: Dictionary
    names: list[LatentName]
    statistics: LatentStatistics
    forest: Forest
    metrics: dict[str, Metric]


def concept_tree_of_scenes(
    model: Backbone, stores: tuple[ActivationStore, ActivationStore], drawn: Scenes, vocabulary: list[str], out: Path,
    *, progress: bool = True, **recipe,
) -> HierarchyResult:  # fmt: skip
    """Train a nested dictionary on patches and find the forest of its latents.

    Args:
        model: the embedded one.
        stores: patches to train on, and those of the held-out scenes `drawn`, with pooled embeddings.
        vocabulary: words for names.
        out: folder of the dictionary.
        progress: show progress bars; recipe: of `TrainConfig`, as for the demo's own dictionary.

    Returns:
        `HierarchyResult`.
    """
    prefixes = [max(1, round(share * recipe["n_latents"])) for share in SHARES]
    dictionary = train(stores[0], "nested_dictionary", out=out, progress=progress, **{**recipe, "prefixes": prefixes})
    statistics = latent_statistics(dictionary, stores[1], n_top=8, progress=progress)
    names = name_latents(
        model, dictionary, vocabulary, mean=stores[0].mean(), image_embeddings=stores[1].embeddings(),
        top_images=statistics.top_images, top_values=statistics.top_image_values,
    )  # fmt: skip
    forest = concept_forest(dictionary, stores[1], **RULES)
    return HierarchyResult(dictionary, names, statistics, forest, _scores(dictionary, stores[1], drawn, forest))


def _scores(dictionary: Dictionary, store: ActivationStore, drawn: Scenes, forest: Forest) -> dict[str, Metric]:
    """Groups over objects: a latent for each by correlation with its presence, then pairs of ancestor and descendant.

    Objects of one colour are left out: there are ten times as many as objects, more than latents.
    """
    tree = concept_hierarchy()
    nodes = np.flatnonzero(np.isin(tree.kinds, SCORED))
    present = torch.from_numpy(tree.presence(drawn)[:, nodes]).float()
    z = torch.cat([dictionary.encode(x).amax(1) for _, x in store.batches(128)])
    if len(nodes) > z.shape[1]:
        return {}
    found = tree_recovery(forest.parent, tree.parent[nodes], best_partners(present, z).numpy())
    return {f"tree_{name}": replace(metric, name=f"tree_{name}") for name, metric in found.items()}
