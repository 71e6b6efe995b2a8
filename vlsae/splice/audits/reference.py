"""What a data set looked like, concept by concept, in a file small enough to keep beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from vlsae.atomic import replacing
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, checked_weights, plain

FORMAT = 1
EDGES = 9  # deciles of the weights where present; with "absent" and "above the last" these make 11 bins


@dataclass(frozen=True, eq=False)
class Profile:
    """Distribution of the weights of every concept over a reference set of images.

    Attributes:
        texts: K concepts.
        n: images.
        count: `[K]` images with weight > 0.
        mean: `[K]` mean weight over all images.
        edges: `[K, 9]` deciles of the positive weights, 0 for a concept that was never seen.
        below: `[K, 9]` images with a weight at or below the edge, absent ones included.
        key: what the weights were made with, such as the hash of the vocabulary, or "".
    """

    texts: tuple[str, ...]
    n: int
    count: np.ndarray
    mean: np.ndarray
    edges: np.ndarray
    below: np.ndarray
    key: str = ""

    @property
    def prevalence(self) -> np.ndarray:
        """`[K]` share of images with the concept."""
        return self.count / self.n

    def table(self, n: int = ROWS_SHOWN) -> str:
        """The most frequent concepts as text."""
        order = np.argsort(-self.count, kind="stable")[:n]
        rows = [
            (self.texts[i], float(self.prevalence[i]), float(self.mean[i]), float(self.edges[i, EDGES // 2]))
            for i in order
        ]
        head = ["concept", "prevalence", "mean", "median where present"]
        return f"{self.n} images, {int((self.count > 0).sum())} of {len(self.texts)} concepts seen\n" + aligned(
            head, rows
        )

    __str__ = table

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds: all texts, and the distribution of those that were seen."""
        seen = np.flatnonzero(self.count)
        rows = {name: getattr(self, name)[seen] for name in ("count", "mean", "edges", "below")}
        return plain({"vlsae_concept_profile": FORMAT, "key": self.key, "n": self.n, "texts": list(self.texts),
                      "seen": seen, **rows})  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write as JSON and return the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.as_dict(), ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what `save` wrote; a file that is something else raises a ValueError."""
        path = Path(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["vlsae_concept_profile"] != FORMAT:
                raise ValueError(f"it has format {found['vlsae_concept_profile']}, this version reads {FORMAT}")
            seen, k = np.asarray(found["seen"], np.int64), len(found["texts"])
            count, mean = np.zeros(k, np.int64), np.zeros(k)
            edges, below = np.zeros((k, EDGES)), np.full((k, EDGES), found["n"], np.int64)
            count[seen], mean[seen] = found["count"], found["mean"]
            edges[seen] = np.reshape(found["edges"], (-1, EDGES))
            below[seen] = np.reshape(found["below"], (-1, EDGES))
            return cls(tuple(found["texts"]), int(found["n"]), count, mean, edges, below, found["key"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no concept profile ({error}); write one with `Profile.save`.") from error


def profile(weights: Any, texts: Sequence[str], *, key: str = "") -> Profile:
    """Keep what `drift` needs of a reference set: prevalence, mean and deciles of every concept.

    Args:
        weights: `[N, K]` sparse, >= 0.
        texts: K concepts.
        key: identifies what made the weights: the vocabulary's hash, better with model and penalty. Only profiles and
            weights with the same key are compared.

    Returns:
        The profile.

    Raises:
        ValueError: for weights and texts that do not fit.

    Example:
        >>> found = profile([[0.2, 0.0], [0.4, 0.1]], ["dog", "grass"])
        >>> found.n, found.prevalence.tolist(), found.edges[0, [0, 4, 8]].tolist()
        (2, [1.0, 0.5], [0.2, 0.2, 0.4])
    """
    w = checked_weights(weights, texts)
    n, k = w.shape
    order = np.lexsort((w.data, w.indices))
    count = np.bincount(w.indices, minlength=k)
    starts = np.cumsum(count) - count
    edges = np.zeros((k, EDGES))
    seen = np.flatnonzero(count)
    for e in range(EDGES):
        # The smallest weight with at least this share of the present ones at or below it.
        rank = np.ceil((e + 1) / (EDGES + 1) * count[seen] - 1e-9).astype(np.int64) - 1
        edges[seen, e] = w.data[order[starts[seen] + np.maximum(rank, 0)]]
    mean = np.bincount(w.indices, w.data, k) / n
    return Profile(tuple(texts), n, count, mean, edges, counts_below(w, edges), key)


def counts_below(w: sparse.csr_matrix, edges: np.ndarray) -> np.ndarray:
    """`[K, E]` images whose weight is at or below each of the concept's edges, absent ones included."""
    n, k = w.shape
    above = [np.bincount(w.indices, w.data > edge[w.indices], k) for edge in edges.T]
    return n - np.rint(np.stack(above, 1)).astype(np.int64)
