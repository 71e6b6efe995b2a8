"""Which latents a class uses after adaptation: its own, those of other classes, or new ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vlsae.adaptation.comparison.aggregation import Aggregates, check_pair
from vlsae.adaptation.comparison.ranking import top_sets
from vlsae.concepts.statistics import entropy_of_shares, shares_of_classes


@dataclass(frozen=True)
class Remapping:
    """Top latents of classes in the adapted model, beside those of base's classes.

    Attributes:
        classes: ids, `[C]`.
        k: size of the top.
        matrix: `[C, C]`, share of adapted class c's top k that is in base's top k of class c'; rows of a class without
            latents are NaN. Latents of several base classes count for each, so rows may sum to more than 1.
        base_matrix: the same with base's own top k in place of the adapted: what classes share before adaptation.
        kept, borrowed, new: `[C]`, shares of the adapted top k that base's same class has, that only other classes of base
            have, and that no class of base has; they sum to 1.
        borrowings: `[B, 3]`, class, latent and one of base's classes it is taken from, by class and latent.
    """

    classes: np.ndarray
    k: int
    matrix: np.ndarray
    base_matrix: np.ndarray
    kept: np.ndarray
    borrowed: np.ndarray
    new: np.ndarray
    borrowings: np.ndarray


def remapping(base: Aggregates, adapted: Aggregates, k: int = 10) -> Remapping:
    """Follow the top k latents of every class, by `a_c`, from base to adapted model; ties go to lower numbers.

    If adaptation remaps concepts to classes instead of making new ones (arXiv 2412.05276), `borrowed` grows and `new` stays
    near 0. What a class of base happens to share with others is in `base_matrix`.

    Args:
        base, adapted: aggregates of the same images.
        k: size of the top; classes with fewer active latents have as many as these.

    Returns:
        `Remapping`.

    Raises:
        ValueError: for aggregates of other images or settings, or k below 1.

    Example:
        >>> labels = np.array([0, 1])
        >>> one, other = (Aggregates(sparse.csr_matrix(m), labels, 9, "count", 0.2)
        ...               for m in ([[5, 4, 0, 0], [0, 0, 5, 4]], [[5, 0, 4, 0], [0, 0, 5, 4]]))
        >>> found = remapping(one, other, k=2)
        >>> found.matrix.tolist(), found.borrowings.tolist()
        ([[0.5, 0.5], [0.0, 1.0]], [[0, 2, 1]])
    """
    check_pair(base, adapted)
    before, after = top_sets(base.by_class, k), top_sets(adapted.by_class, k)
    sizes = np.asarray(after.sum(1), np.float64).ravel()
    own = after.multiply(before).tocsr()
    somewhere = sparse.diags(np.asarray(before.sum(0)).ravel() > 0, dtype=np.int64)
    foreign = ((after - own) @ somewhere).tocsr()  # in another class's top, not in this one's
    kept, borrowed = (_share(np.asarray(part.sum(1)).ravel(), sizes) for part in (own, foreign))
    return Remapping(
        base.classes, k, _shares_of_rows(after, before), _shares_of_rows(before, before), kept, borrowed,
        1 - kept - borrowed, _borrowings(foreign, before, base.classes),
    )  # fmt: skip


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _shares_of_rows(sets: sparse.csr_matrix, owners: sparse.csr_matrix) -> np.ndarray:
    """`|A_c & B_c'| / |A_c|`, `[C, C]`."""
    common = (sets @ owners.T).toarray().astype(np.float64)
    return _share(common, np.broadcast_to(np.asarray(sets.sum(1)), common.shape))


def _borrowings(foreign: sparse.csr_matrix, before: sparse.csr_matrix, classes: np.ndarray) -> np.ndarray:
    foreign.eliminate_zeros()
    rows, latents = foreign.nonzero()
    owner, which = before[:, latents].T.nonzero()[::-1] if len(rows) else (np.empty(0, int), np.empty(0, int))
    table = np.stack([classes[rows[which]], latents[which], classes[owner]], 1)
    return table[np.lexsort(table.T[::-1])]


@dataclass(frozen=True)
class RankTable:
    """One entry for every class and latent that is in the class's top k in either model, as parallel arrays.

    Attributes:
        classes: class id.
        latents: latent.
        before, after: activation an image of the class, base and adapted.
        rank_before, rank_after: 1 + latents strictly above it, so that tied ones share the better rank; -1 if silent.
    """

    classes: np.ndarray
    latents: np.ndarray
    before: np.ndarray
    after: np.ndarray
    rank_before: np.ndarray
    rank_after: np.ndarray


def rank_table(base: Aggregates, adapted: Aggregates, k: int = 10) -> RankTable:
    """Ranks of the top latents of every class before and after adaptation, by class and then by rank before.

    Raises:
        ValueError: for aggregates of other images or settings, or k below 1.

    Example:
        >>> one, other = (Aggregates(sparse.csr_matrix([m]), np.array([3]), 9, "count", 0.2) for m in ([5, 4, 4], [0, 7, 8]))
        >>> table = rank_table(one, other, k=1)
        >>> table.latents.tolist(), table.rank_before.tolist(), table.rank_after.tolist()
        ([0, 2], [1, 2], [-1, 1])
    """
    check_pair(base, adapted)
    parts = []
    either = (top_sets(base.by_class, k) + top_sets(adapted.by_class, k)).tocsr()
    for r, class_id in enumerate(base.classes):
        latents = np.sort(either[r].indices)
        values = [side.class_means[r].toarray()[0] for side in (base, adapted)]
        ranks = [_ranks(row, latents) for row in values]
        order = np.lexsort((ranks[1], np.where(ranks[0] > 0, ranks[0], base.n_latents + 1)))
        columns = (np.full(len(latents), class_id), latents, values[0][latents], values[1][latents], *ranks)
        parts.append([column[order] for column in columns])
    return RankTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _ranks(row: np.ndarray, latents: np.ndarray) -> np.ndarray:
    rising = np.sort(row)
    above = len(row) - np.searchsorted(rising, row[latents], side="right")
    return np.where(row[latents] > 0, above + 1, -1)


def label_entropies(base: Aggregates, adapted: Aggregates) -> tuple[np.ndarray, np.ndarray]:
    """Label entropy of every latent before and after, `-sum_c p_c ln p_c` with `p_c = a_c / sum_c a_c`, `[n]` each in nats.

    0 for a latent of one class, ln C for one alike in all C; NaN where silent. Aggregates with the operator "mean" weigh
    images by activation, those with "count" by tokens; classes with more images weigh more, as in PatchSAE.

    Raises:
        ValueError: for aggregates of other images or settings, or negative activations, of which no share can be told.

    Example:
        >>> one, other = (Aggregates(sparse.csr_matrix(m), np.array([0, 1]), 9, "count", 0.2) for m in ([[3], [3]], [[5], [0]]))
        >>> [entropy.round(4).tolist() for entropy in label_entropies(one, other)]
        [[0.6931], [0.0]]
    """
    check_pair(base, adapted)
    return _label_entropy(base), _label_entropy(adapted)


def _label_entropy(aggregates: Aggregates) -> np.ndarray:
    sums = aggregates.by_class
    if sums.nnz and sums.data.min() < 0:
        raise ValueError(
            "Some activations are negative; label entropy needs shares, so use 'count' for codes of both signs."
        )
    used = np.unique(sums.indices)
    entropy = np.full(aggregates.n_latents, np.nan)
    entropy[used] = entropy_of_shares(shares_of_classes(sums[:, used].toarray().astype(np.float64)))
    return entropy
