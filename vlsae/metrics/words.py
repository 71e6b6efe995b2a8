"""Whether the words that describe an image are true of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from vlsae.metrics.result import Metric

TOP = 8


def top_words(scores, i: int, top: int = TOP) -> np.ndarray:
    """Columns of the `top` largest positive scores of sample `i`, largest first (equal scores: by number)."""
    if scipy.sparse.issparse(scores):
        row = scores[i]
        columns, values = row.indices, row.data
    else:
        values = np.asarray(scores[i])
        columns = np.arange(len(values))
    keep = values > 0
    columns, values = columns[keep], values[keep]
    return columns[np.lexsort((columns, -values))[:top]]


def words_against_truth(
    scores, texts: Sequence[str], wanted: Sequence[set[str]], true: Sequence[set[str]], top: int = TOP
) -> dict[str, Metric]:
    """Recall of the wanted words and precision of all words, among the top words of every image.

    Args:
        scores: `[N, K]`, sparse or dense; words with a score of 0 or less are never said.
        texts: the K words.
        wanted: for every image, the words that should be among the top ones, such as its objects.
        true: for every image, all words that are true of it.
        top: how many words are looked at.

    Returns:
        "recall" and "precision", means over images; an image without any word has precision 0.

    Raises:
        ValueError: for unequal lengths, or an image without a wanted word.

    Example:
        >>> found = words_against_truth(np.array([[3.0, 2.0, 0.0]]), ["cat", "bus", "red"], [{"cat"}], [{"cat", "red"}])
        >>> found["recall"].value, found["precision"].value
        (1.0, 0.5)
    """
    n = scores.shape[0]
    if not n == len(wanted) == len(true) or scores.shape[1] != len(texts):
        raise ValueError(
            f"Scores have shape {scores.shape}, beside {len(texts)} words and truths of {len(wanted)} and {len(true)} images."
        )
    empty = next((i for i, words in enumerate(wanted) if not words), None)
    if empty is not None:
        raise ValueError(f"Image {empty} has no wanted word, so that its recall is not defined; leave it out.")
    said = [{texts[c] for c in top_words(scores, i, top)} for i in range(n)]
    recall = np.mean([len(s & w) / len(w) for s, w in zip(said, wanted, strict=True)])
    precision = np.mean([len(s & t) / max(1, len(s)) for s, t in zip(said, true, strict=True)])
    return {
        "recall": Metric(
            "recall", float(recall), n, f"share of an image's wanted words among its top {top}, mean over images"
        ),
        "precision": Metric(
            "precision", float(precision), n, f"share of the top {top} words that are true of the image"
        ),
    }
