"""Whether a forest over latents is the true tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from vlsae.metrics.result import Metric

DEFINITIONS = {
    "ancestor_precision": "share of the forest's pairs (ancestor, descendant) that are true; 0 where it has none",
    "ancestor_recall": "share of the true pairs (ancestor, descendant) that the forest has",
    "ancestor_f1": "2 / (1 / precision + 1 / recall) of pairs (ancestor, descendant); 0 where none is right",
    "tree_distance": "Spearman correlation over pairs of nodes of their distance in the forest with that in the true tree, "
    "all roots one step below a common node; 0 where one never varies",
}


def check_tree(parent: np.ndarray) -> None:
    """Refuse parents that do not exist or go in a circle.

    Raises:
        ValueError: for these.
    """
    m = len(parent)
    if m and (parent.min() < -1 or parent.max() >= m):
        raise ValueError(f"Parents lie in {parent.min()} to {parent.max()}; expected -1 to {m - 1}.")
    at = parent
    for _ in range(m):
        at = np.where(at >= 0, parent[at], -1)
        if (at < 0).all():
            return
    if m:
        raise ValueError(f"The parents of node {np.argmax(at >= 0)} go in a circle; every path must end in a root, -1.")


def ancestors(parent: np.ndarray) -> np.ndarray:
    """Who is above whom, bool `[m, m]`: `[i, j]` where `j` is a proper ancestor of `i`.

    Raises:
        ValueError: for parents that do not exist or go in a circle.

    Example:
        >>> ancestors(np.array([-1, 0, 1])).astype(int).tolist()
        [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    """
    parent = np.asarray(parent)
    check_tree(parent)
    above, at = np.zeros((len(parent), len(parent)), bool), parent
    while (at >= 0).any():
        above[np.flatnonzero(at >= 0), at[at >= 0]] = True
        at = np.where(at >= 0, parent[at], -1)
    return above


def induced_parents(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The forest over some nodes only: `[len(nodes)]`, the place in `nodes` of the nearest ancestor among them, or -1.

    Example:
        >>> induced_parents(np.array([-1, 0, 1, 1]), np.array([3, 0])).tolist()
        [1, -1]
    """
    parent, nodes = np.asarray(parent), np.asarray(nodes)
    place = np.full(len(parent) + 1, -1)  # the last for -1, the end of every path
    place[nodes] = np.arange(len(nodes))
    at = parent[nodes]
    while (passed := (at >= 0) & (place[at] < 0)).any():
        at = np.where(passed, parent[at], at)
    return place[at]


def tree_distances(parent: np.ndarray) -> np.ndarray:
    """Steps between all nodes, `[m, m]`, with all roots one step below a common node.

    Example:
        >>> tree_distances(np.array([-1, 0, 0, -1])).tolist()
        [[0, 1, 1, 2], [1, 0, 2, 3], [1, 2, 0, 3], [2, 3, 3, 0]]
    """
    line = (ancestors(parent) | np.eye(len(parent), dtype=bool)).astype(np.int64)
    depth = line.sum(1)
    return depth[:, None] + depth[None, :] - 2 * (line @ line.T)


def tree_recovery(
    parent: np.ndarray, true_parent: np.ndarray, matched: np.ndarray | None = None, *, n_random: int = 20, seed: int = 0
) -> dict[str, Metric]:
    """Score a forest over latents against a true tree, by pairs of ancestor and descendant and by distances.

    Latents between matched ones are passed over: the forest is cut down to the matched latents first. Baselines, means
    over seeds: "random", as many edges to random parents; "shuffled", the same forest with its nodes exchanged.

    Args:
        parent: `[m]`, the parent of each latent, -1 for roots, such as `Forest.parent`.
        true_parent: `[t]`, the parent of each true node.
        matched: `[t]`, the latent that stands for each true node, no two alike, such as `best_partners` gives; the
            latents are the nodes where None.
        n_random: random forests behind each baseline.
        seed: of these.

    Returns:
        "ancestor_precision", "ancestor_recall", "ancestor_f1" and "tree_distance"; `n` is the number of pairs that the
        forest has, that the tree has, of true nodes, and of pairs of nodes.

    Raises:
        ValueError: for a matching that does not fit, circles, or a tree of less than two nodes or without edges.

    Example:
        >>> found = tree_recovery(np.array([-1, 0, 0, -1]), np.array([-1, 0, 0, 0]))
        >>> found["ancestor_precision"].value, round(found["ancestor_recall"].value, 4)
        (1.0, 0.6667)
    """
    parent, true_parent = np.asarray(parent), np.asarray(true_parent)
    matched = np.arange(len(true_parent)) if matched is None else np.asarray(matched)
    _check(parent, true_parent, matched)
    check_tree(parent)
    forest = induced_parents(parent, matched)
    scores, sizes = _scores(forest, true_parent)
    rng = np.random.default_rng(seed)
    others = {"random": [], "shuffled": []}
    for _ in range(n_random):
        others["random"].append(_scores(random_forest(len(forest), int((forest >= 0).sum()), rng), true_parent)[0])
        shuffled = induced_parents(forest, rng.permutation(len(forest)))
        others["shuffled"].append(_scores(shuffled, true_parent)[0])
    metrics = {
        name: Metric(name, scores[name], sizes[name], definition, "arXiv 2503.17547 (trees of features)")
        for name, definition in DEFINITIONS.items()
    }
    if n_random:
        for name, metric in metrics.items():
            means = {kind: float(np.mean([one[name] for one in drawn])) for kind, drawn in others.items()}
            metrics[name] = replace(metric, baselines=means)
    return metrics


def random_forest(m: int, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Parents `[m]` of a forest with `n_edges` edges: in a random order, random nodes get a random earlier parent."""
    order, parent = rng.permutation(m), np.full(m, -1)
    for place in 1 + rng.permutation(m - 1)[:n_edges]:
        parent[order[place]] = order[rng.integers(place)]
    return parent


def _check(parent: np.ndarray, true_parent: np.ndarray, matched: np.ndarray) -> None:
    if len(matched) != len(true_parent) or len(np.unique(matched)) != len(matched):
        raise ValueError(
            f"{len(matched)} matched latents, {len(np.unique(matched))} of them different, for {len(true_parent)} true nodes; "
            "give each node a latent of its own."
        )
    if len(matched) and (matched.min() < 0 or matched.max() >= len(parent)):
        raise ValueError(f"Matched latents lie in {matched.min()} to {matched.max()}; there are {len(parent)}.")
    if not (true_parent >= 0).any():
        raise ValueError("The true tree has no edges, so that there is nothing to recover; give one with parents.")


def _scores(forest: np.ndarray, true_parent: np.ndarray) -> tuple[dict[str, float], dict[str, int]]:
    claimed, true = ancestors(forest), ancestors(true_parent)
    right, n_claimed, n_true = int((claimed & true).sum()), int(claimed.sum()), int(true.sum())
    upper = np.triu_indices(len(forest), 1)
    scores = {
        "ancestor_precision": right / max(1, n_claimed),
        "ancestor_recall": right / n_true,
        "ancestor_f1": 2 * right / (n_claimed + n_true),
        "tree_distance": _spearman(tree_distances(forest)[upper], tree_distances(true_parent)[upper]),
    }
    return scores, dict(zip(scores, (n_claimed, n_true, len(forest), len(upper[0])), strict=True))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, ties shared; 0 where one side never varies."""
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (a, b))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else 0.0
