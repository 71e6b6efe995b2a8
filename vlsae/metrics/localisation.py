"""Whether a map is high where a concept is: AUROC, average precision, pointing game, IoU, per concept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


def auroc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every column: the chance that a true row outscores a false one, ties half.

    Args:
        scores: `[N]` or `[N, columns]`.
        truth: bool `[N]`.

    Returns:
        A float or `[columns]`; NaN where `truth` is all alike.

    Example:
        >>> float(auroc(np.array([3.0, 2.0, 1.0]), np.array([True, False, False])))
        1.0
    """
    scores, truth = np.asarray(scores), np.asarray(truth, bool)
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    if n_true == 0 or n_false == 0:
        return np.full(scores.shape[1:], np.nan)[()]
    ranks = rankdata(scores, axis=0)
    return ((ranks[truth].sum(0) - n_true * (n_true + 1) / 2) / (n_true * n_false))[()]


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision over the true rows in order of falling score; rows with equal scores enter together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits, seen = hits[last_of_tie], (np.arange(len(order)) + 1)[last_of_tie]
    return float((np.diff(hits, prepend=0) * hits / seen).sum() / max(1, truth.sum()))


def best_iou(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Largest intersection over union of `scores >= t` with the truth, and the threshold `t`."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    iou = hits / (np.arange(len(order)) + 1 + truth.sum() - hits)
    iou = np.where(np.append(np.diff(scores[order]) != 0, True), iou, 0.0)
    best = int(iou.argmax())
    return float(iou[best]), float(scores[order][best])


@dataclass(frozen=True)
class Localisation:
    """How well one column of scores localises each concept.

    Attributes:
        concepts: concept numbers, one an entry of the lists below.
        columns: the chosen column (latent, neuron, ...).
        auroc: on the concept's patches against other objects' patches, on the scoring half.
        auroc_all: against every other patch, background included.
        average_precision: against other objects' patches.
        pointing: share of images with the concept whose highest patch lies on it.
        iou: at the threshold that is best on the choosing half, over all patches of images with the concept.
        n: patches of the concept in the scoring half.
    """

    concepts: list[int]
    columns: list[int]
    auroc: list[float]
    auroc_all: list[float]
    average_precision: list[float]
    pointing: list[float]
    iou: list[float]
    n: list[int]

    @property
    def median(self) -> float:
        """Median AUROC over concepts."""
        return float(np.median(self.auroc)) if self.auroc else float("nan")

    def share_above(self, level: float = 0.95) -> float:
        """Share of the concepts with an AUROC of at least `level`."""
        return float(np.mean(np.asarray(self.auroc) >= level)) if self.auroc else float("nan")


def best_columns(scores: np.ndarray, owner: np.ndarray, n_concepts: int, signed: bool = False) -> np.ndarray:
    """Number of the column with the largest AUROC for each concept against other concepts; -1 where absent.

    Args:
        scores: `[patches, columns]`.
        owner: `[patches]` concept number of the object that covers a patch, -1 for none.
        n_concepts: how many there are.
        signed: also consider each column turned round; such columns are numbered `-2 - column`.
    """
    shown = owner >= 0
    values, truth = scores[shown], owner[shown]
    ranks = rankdata(values, axis=0)
    chosen = np.full(n_concepts, -1)
    for concept in np.unique(truth):
        mine = truth == concept
        n_true, n_false = mine.sum(), (~mine).sum()
        if n_false == 0:
            continue
        area = (ranks[mine].sum(0) - n_true * (n_true + 1) / 2) / (n_true * n_false)
        best, worst = int(area.argmax()), int(area.argmin())
        chosen[concept] = -2 - worst if signed and 1 - area[worst] > area[best] else best
    return chosen


def take_column(scores: np.ndarray, column: int) -> np.ndarray:
    """Scores of a column as numbered by `best_columns`."""
    return -scores[..., -2 - column] if column <= -2 else scores[..., column]


def localise(
    choose: tuple[np.ndarray, np.ndarray], score: tuple[np.ndarray, np.ndarray], n_concepts: int, signed: bool = False
) -> Localisation:
    """Choose the best column for every concept on some images, score it on others.

    Args:
        choose, score: `(scores [images, patches, columns], owner [images, patches])`; owner is the concept number of
            the object on a patch, -1 for background.
        n_concepts: number of concepts.
        signed: columns may be turned round (for neurons and directions; latents are positive by construction).

    Returns:
        `Localisation` over the concepts present in both halves.
    """
    columns = best_columns(choose[0].reshape(-1, choose[0].shape[-1]), choose[1].ravel(), n_concepts, signed)
    values, owner = score
    rows: list[tuple] = []
    for concept in np.unique(owner[owner >= 0]):
        if columns[concept] == -1:
            continue
        column = take_column(values, columns[concept])
        mine, shown = owner == concept, owner >= 0
        area = auroc(column[shown], mine[shown])
        if np.isnan(area):
            continue
        chosen_values = take_column(choose[0], columns[concept])
        threshold = best_iou(*_within(chosen_values, choose[1], concept))[1]
        inside, truth = _within(column, owner, concept)
        union = ((inside >= threshold) | truth).sum()
        holds = mine.any(1)
        top = column[holds].argmax(1)
        rows.append(
            (
                int(concept),
                int(columns[concept]),
                float(area),
                float(auroc(column.ravel(), mine.ravel())),
                average_precision(column[shown], mine[shown]),
                float(mine[holds][np.arange(len(top)), top].mean()),
                float(((inside >= threshold) & truth).sum() / max(1, union)),
                int(mine.sum()),
            )
        )
    return Localisation(*(list(values) for values in zip(*rows, strict=True))) if rows else Localisation(
        *([] for _ in range(8))
    )  # fmt: skip


def _within(column: np.ndarray, owner: np.ndarray, concept: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and truth of all patches of the images that show the concept."""
    holds = (owner == concept).any(1)
    return column[holds].ravel(), (owner[holds] == concept).ravel()
