"""The section of the demo's report about the concept tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlsae.report.hierarchy import concept_tree
from vlsae.report.page import cell, paragraph, section, table

if TYPE_CHECKING:
    from vlsae.demo_hierarchy import HierarchyResult
    from vlsae.world import Scenes

LABELS = {
    "tree_ancestor_precision": "pairs of the forest that are true",
    "tree_ancestor_recall": "true pairs that the forest has",
    "tree_ancestor_f1": "F1 of these pairs",
    "tree_tree_distance": "rank correlation of distances",
}


def hierarchy_section(result: HierarchyResult, drawn: Scenes) -> str:
    """The largest trees, and how much of the scenes' true hierarchy they hold."""
    forest = result.forest
    prefixes = ", ".join(f"{n:,}" for n in result.dictionary.prefixes)
    return section(
        "A tree of concepts",
        paragraph(
            f"A dictionary with nested prefixes ({prefixes} latents), whose first latents have to explain patches without the "
            "others. A latent's parent is active on most of its patches, more often than it, far more than by chance, and "
            f"in no later prefix. {int((forest.parent >= 0).sum())} of {len(forest.parent):,} latents have one, the deepest "
            f"path has {int(forest.depth.max()) + 1} latents. The largest trees; click, or press Enter, to open or close one."
        ),
        concept_tree(forest, result.statistics, lambda i: drawn[i].image, result.names),
        _scores(result),
    )


def _scores(result: HierarchyResult) -> str:
    if not result.metrics:
        return ""
    rows = [
        [
            LABELS[name],
            f"{metric.n:,}",
            cell(metric.value),
            *(cell(metric.baselines[b]) for b in ("random", "shuffled")),
        ]
        for name, metric in result.metrics.items()
    ]
    return paragraph(
        "Against the truth: a latent for each of the scenes' groups and objects, by correlation with its presence; then pairs "
        "(ancestor, descendant) of these in the forest and in the true hierarchy, group over object. Trees at random "
        "stand beside; the whole truth would be 1."
    ) + table(["score", "n", "ours", "random parents", "nodes shuffled"], rows)
