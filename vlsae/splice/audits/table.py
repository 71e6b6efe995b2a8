"""What every audit shares: checked weights, labels as numbers, sums over images, and aligned tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

ROWS_SHOWN = 12


def checked_weights(weights: Any, texts: Sequence[str] | None = None) -> sparse.csr_matrix:
    """The weights as a float64 CSR matrix without stored zeros, after everything that could be wrong was looked at.

    Args:
        weights: `[N images, K concepts]`, sparse or dense, finite and non-negative.
        texts: K concept strings, all different, or None where they are not needed.

    Returns:
        A copy where anything had to be changed; the caller's matrix is never written to.

    Raises:
        ValueError: for another shape, no image, NaN, infinite or negative weights, or repeated or missing texts.

    Example:
        >>> checked_weights([[0.5, 0.0], [0.0, 0.2]], ["dog", "cat"]).nnz
        2
    """
    if not sparse.issparse(weights):
        weights = np.asarray(weights)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(
            f"The weights have shape {tuple(weights.shape)}; expected [images, concepts] with at least one of each, "
            "such as the CSR matrix of a decomposition. Add the missing axis or images."
        )
    matrix = sparse.csr_matrix(weights, dtype=np.float64)
    wrong = ~np.isfinite(matrix.data) | (matrix.data < 0)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
        raise ValueError(
            f"The weight of image {row}, concept {matrix.indices[at]} is {matrix.data[at]}, one of {int(wrong.sum())} "
            "that are negative or not finite; expected finite weights >= 0. Decompose again, or leave these images out."
        )
    if not matrix.has_canonical_format or not matrix.data.all():
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    if texts is not None:
        _check_texts(texts, matrix.shape[1])
    return matrix


def checked_row(row: Any, k: int) -> sparse.csr_matrix:
    """The weights of one image, `[K]` or `[1, K]`, as a checked `[1, K]` matrix; anything else raises a ValueError.

    Example:
        >>> checked_row([0.0, 0.3], 2).shape
        (1, 2)
    """
    if not sparse.issparse(row):
        row = np.asarray(row)
    if row.shape not in ((k,), (1, k)):
        raise ValueError(
            f"The weights of the image have shape {tuple(row.shape)}; expected ({k},) or (1, {k}), one image and one "
            "weight a concept. Give one image at a time, decomposed with the same vocabulary."
        )
    return checked_weights(row.reshape(1, k))


def _check_texts(texts: Sequence[str], k: int) -> None:
    if isinstance(texts, str) or len(texts) != k:
        raise ValueError(
            f"{len(texts)} concept texts were given for weights of {k} concepts; expected one a column. "
            "Give the vocabulary that the weights were made with."
        )
    if len(set(texts)) != k:
        seen: set[str] = set()
        twice = next(t for t in texts if t in seen or seen.add(t))
        raise ValueError(f"The concept {twice!r} is there twice; expected {k} different texts. Merge the columns.")


def labels_of(labels: Iterable[Any], n: int, what: str = "labels", least: int = 2) -> tuple[list[Any], np.ndarray]:
    """Distinct labels in order, and the number of every image's label.

    Args:
        labels: one an image, strings or numbers.
        n: number of images.
        what: what the caller calls them, for messages.
        least: fewest distinct labels that make sense.

    Returns:
        The distinct labels as plain Python values, and `[N]` numbers into them.

    Raises:
        ValueError: for another number of labels, missing ones (NaN or None), or too few distinct ones.

    Example:
        >>> names, numbers = labels_of(["cat", "dog", "cat"], 3)
        >>> names, numbers.tolist()
        (['cat', 'dog'], [0, 1, 0])
    """
    values = np.asarray(labels if isinstance(labels, np.ndarray) else list(labels))
    if values.shape != (n,):
        raise ValueError(
            f"The {what} have shape {values.shape} for {n} images; expected one an image. Give them in image order."
        )
    if values.dtype == object or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise ValueError(
            f"Some {what} are missing or of mixed types; expected all strings or all numbers. Filter first."
        )
    names, numbers = np.unique(values, return_inverse=True)
    if len(names) < least:
        raise ValueError(
            f"The {what} hold {len(names)} distinct value(s), {names.tolist()}; expected at least {least} to compare. "
            "Add images of another one."
        )
    return names.tolist(), numbers.reshape(-1)


def position(name: Any, among: Sequence[Any], what: str = "concept") -> int:
    """Place of a name; an unknown one raises a ValueError with the nearest spellings.

    Example:
        >>> position("dgo", ["dog", "cat"])
        Traceback (most recent call last):
        ValueError: The concept 'dgo' is not among the 2 known; near it: 'dog'. Use one of the known names.
    """
    places = {text: i for i, text in enumerate(among)}
    if name not in places:
        near = difflib.get_close_matches(str(name), [str(a) for a in among], 3)
        hint = f"near it: {', '.join(map(repr, near))}" if near else f"the first are {list(among[:3])!r}"
        raise ValueError(
            f"The {what} {name!r} is not among the {len(among)} known; {hint}. Use one of the known names."
        )
    return places[name]


def indicator(numbers: np.ndarray, n: int) -> sparse.csr_matrix:
    """`[n, N]` matrix of ones that sums rows by number: `indicator(labels, classes) @ weights`."""
    return sparse.csr_matrix((np.ones(len(numbers)), (numbers, np.arange(len(numbers)))), (n, len(numbers)))


def presence(weights: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same matrix with ones for every weight above zero."""
    return sparse.csr_matrix((np.ones(weights.nnz), weights.indices, weights.indptr), weights.shape)


def class_sums(weights: sparse.csr_matrix, numbers: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of weights and number of images with the concept, both `[n classes, K]`."""
    rows = indicator(numbers, n)
    return (rows @ weights).toarray(), np.rint((rows @ presence(weights)).toarray()).astype(np.int64)


def plain(value: Any) -> Any:
    """Arrays and numpy numbers as what JSON holds; NaN and infinities become None.

    Example:
        >>> plain({"a": np.array([1.0, np.nan])})
        {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def aligned(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of equal width: words to the left, numbers to the right, floats with three digits that count.

    Example:
        >>> print(aligned(["concept", "n"], [["dog", 12], ["cat", 3]]))
        concept   n
        dog      12
        cat       3
    """
    rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    lines = [list(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric)).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return text.startswith("[")
    return True
