"""Whether a map is high where a concept is: AUROC, average precision, pointing game, IoU, per concept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from vlsae.dictionaries.base import Codes

COLUMNS = 64  # ranked at a time: sorting needs several times their size


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
    columns = scores.reshape(len(scores), -1).T
    ranks = np.array([_ranks_among(column[truth], column).sum() for column in columns]).reshape(scores.shape[1:])
    return ((ranks - n_true * (n_true + 1) / 2) / (n_true * n_false))[()]


def _ranks_among(some: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Ranks of some of the scores among all of them, equal ones sharing their mean rank."""
    ordered = np.sort(scores)
    return (np.searchsorted(ordered, some, "left") + np.searchsorted(ordered, some, "right") + 1) / 2


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision over the true rows in order of falling score; rows with equal scores enter together."""
    order = np.argsort(-scores)
    hits = np.cumsum(truth[order])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits, seen = hits[last_of_tie], (np.arange(len(order)) + 1)[last_of_tie]
    return float((np.diff(hits, prepend=0) * hits / seen).sum() / max(1, truth.sum()))


def best_iou(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Largest intersection over union of `scores >= t` with the truth, and the threshold `t`."""
    order = np.argsort(-scores)
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


def _rank_sums(scores: np.ndarray | Codes) -> Callable[[np.ndarray], np.ndarray]:
    """For bool `[N]`, the sum of the chosen rows' ranks in every column, equal scores sharing their mean rank.

    Of sparse codes only the active ones are sorted: all zeros of a column have one rank, between the two signs.
    """
    if not isinstance(scores, Codes):
        ranks = np.empty(scores.shape, np.float32)
        for i in range(0, scores.shape[1], COLUMNS):
            ranks[:, i : i + COLUMNS] = rankdata(np.ascontiguousarray(scores[:, i : i + COLUMNS].T), axis=1).T
        return lambda chosen: ranks[chosen].sum(0, dtype=np.float64)
    n = scores.n_latents
    rows, latents, values = (part.cpu().numpy() for part in (scores.rows, scores.latents, scores.values))
    order = np.lexsort((values, latents))
    rows, latents, values = rows[order], latents[order], values[order]
    active, negative = np.bincount(latents, minlength=n), np.bincount(latents[values < 0], minlength=n)
    zeros = scores.n - active
    place = np.arange(len(order)) - (np.cumsum(active) - active)[latents] + np.where(values > 0, zeros[latents], 0)
    new = np.append(True, (np.diff(latents) != 0) | (np.diff(values) != 0))[: len(order)]
    run, size = np.cumsum(new) - 1, np.bincount(np.cumsum(new) - 1)
    ranks = place[new][run] + (size[run] + 1) / 2
    of_zero = negative + (zeros + 1) / 2

    def sums(chosen: np.ndarray) -> np.ndarray:
        keep = chosen[rows]
        silent = chosen.sum() - np.bincount(latents[keep], minlength=n)
        return np.bincount(latents[keep], ranks[keep], n) + silent * of_zero

    return sums


def best_columns(scores: np.ndarray | Codes, owner: np.ndarray, n_concepts: int, signed: bool = False) -> np.ndarray:
    """Number of the column with the largest AUROC for each concept against the others, `[n_concepts]`; -1 if absent.

    Args:
        scores: `[patches, columns]`, of patches that show an object, or sparse codes of them.
        owner: `[patches]`, concept number of that object.
        n_concepts: how many there are.
        signed: also consider each column turned round; such columns are numbered `-2 - column`.
    """
    rank_sums = _rank_sums(scores)
    chosen = np.full(n_concepts, -1)
    for concept in np.unique(owner):
        mine = owner == concept
        n_true, n_false = int(mine.sum()), int((~mine).sum())
        if n_false == 0:
            continue
        area = (rank_sums(mine) - n_true * (n_true + 1) / 2) / (n_true * n_false)
        best, worst = int(area.argmax()), int(area.argmin())
        chosen[concept] = -2 - worst if signed and 1 - area[worst] > area[best] else best
    return chosen


def _columns_of(view, x: Tensor, columns: np.ndarray, chunk: int = 64) -> np.ndarray:
    """Scores of the chosen columns only, `[images, patches, len(columns)]`, turned round where the number says so."""
    at = np.where(columns <= -2, -2 - columns, columns)
    sign = torch.from_numpy(np.where(columns <= -2, -1.0, 1.0)).float()
    index = torch.from_numpy(at)

    def seen(part: Tensor) -> Tensor:
        found = view(part)
        if isinstance(found, Codes):
            return found.columns(index).unflatten(0, part.shape[:2])
        return found[..., index]

    return torch.cat([seen(part).float().cpu() * sign for part in x.split(chunk)]).numpy()


@torch.no_grad()
def localise(
    view: Callable[[Tensor], Tensor | Codes], x: Tensor, owner: np.ndarray, n_concepts: int, signed: bool = False
) -> Localisation:
    """Choose the best column for every concept on the first half of the images, score it on the second.

    Args:
        view: maps activations `[..., d]` to columns `[..., columns]`, or to sparse codes: `dictionary.encode_sparse`.
        x: patch activations `[images, patches, d]`.
        owner: `[images, patches]`, concept number of the object on a patch, -1 for none.
        n_concepts: number of concepts.
        signed: columns may be turned round (for neurons and directions; latents are positive by construction).

    Returns:
        `Localisation` over the concepts that are present in both halves.

    Raises:
        ValueError: when `x` and `owner` do not fit.
    """
    if tuple(x.shape[:2]) != owner.shape:
        raise ValueError(f"x has {tuple(x.shape[:2])} images and patches, owner {owner.shape}; they must be equal.")
    half = len(x) // 2
    shown = owner[:half] >= 0
    found = view(x[:half][torch.from_numpy(shown)])
    found = found if isinstance(found, Codes) else found.float().cpu().numpy()
    chosen = best_columns(found, owner[:half][shown], n_concepts, signed)
    concepts = [int(c) for c in np.unique(owner[half:][owner[half:] >= 0]) if chosen[c] != -1]
    values = _columns_of(view, x, chosen[concepts])
    rows = [
        (concept, int(chosen[concept]), *_scores(values[:half, :, i], owner[:half], values[half:, :, i], owner[half:], concept))
        for i, concept in enumerate(concepts)
    ]  # fmt: skip
    return Localisation(*([row[i] for row in rows] for i in range(8)))


def _scores(choose: np.ndarray, choose_owner: np.ndarray, values: np.ndarray, owner: np.ndarray, concept: int) -> tuple:
    """AUROC, AUROC against all patches, average precision, pointing, IoU and n of one concept's column."""
    mine, shown = owner == concept, owner >= 0
    threshold = best_iou(*_within(choose, choose_owner, concept))[1]
    inside, truth = _within(values, owner, concept)
    holds = mine.any(1)
    top = values[holds].argmax(1)
    return (
        float(auroc(values[shown], mine[shown])),
        float(auroc(values.ravel(), mine.ravel())),
        average_precision(values[shown], mine[shown]),
        float(mine[holds][np.arange(len(top)), top].mean()),
        float(((inside >= threshold) & truth).sum() / max(1, ((inside >= threshold) | truth).sum())),
        int(mine.sum()),
    )


def _within(column: np.ndarray, owner: np.ndarray, concept: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and truth of all patches of the images that show the concept."""
    holds = (owner == concept).any(1)
    return column[holds].ravel(), (owner[holds] == concept).ravel()
