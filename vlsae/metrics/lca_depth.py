"""How specific latents are, by a taxonomy of what their top images show."""

from __future__ import annotations

import numpy as np

from vlsae.metrics.tree_recovery import ancestors


def lca_depth(top: np.ndarray, labels: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Depth of the lowest common ancestor of each latent's top images: 0 for the root, more for what is more specific.

    Pach et al. 2025 (arXiv 2504.02821) average it over the latents of each Matryoshka group: early groups are shallower.

    Args:
        top: image numbers `[n, N]` such as `LatentStatistics.top_images`; -1 pads.
        labels: `[images]`, the node of the taxonomy that each image shows.
        parent: `[nodes]`, the parent of each node; -1 for the root, of which there is one.

    Returns:
        `[n]`, NaN for a latent without top images.

    Raises:
        ValueError: for no or several roots, a circle, or numbers of images or nodes that do not exist.

    Example:
        >>> parent = np.array([-1, 0, 0, 1, 1])  # a root with two groups, the first of two things
        >>> lca_depth(np.array([[0, 1], [0, 2], [0, 0]]), np.array([3, 4, 2]), parent).tolist()
        [1.0, 0.0, 2.0]
    """
    top, labels, parent = (np.asarray(values) for values in (top, labels, parent))
    if (parent == -1).sum() != 1 or parent.min() < -1 or parent.max() >= len(parent):
        raise ValueError(f"parent={parent.tolist()} must hold -1 once, for the root, and else numbers of nodes.")
    if top.max(initial=-1) >= len(labels) or labels.min(initial=0) < 0 or labels.max(initial=0) >= len(parent):
        raise ValueError(
            f"Top images up to {top.max(initial=-1)} for {len(labels)} labels up to {labels.max(initial=0)} and "
            f"{len(parent)} nodes; every image needs a label, and every label a node."
        )
    ancestor = ancestors(parent) | np.eye(len(parent), dtype=bool)  # [node, ancestor], a node its own
    depth = np.full(len(top), np.nan)
    for i, row in enumerate(top):
        if (row >= 0).any():
            depth[i] = ancestor[labels[row[row >= 0]]].all(0).sum() - 1  # common ancestors are a path from the root
    return depth
