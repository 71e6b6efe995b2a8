"""Concept classifiers from one concept to many: accuracy against sparsity, and a choice on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from vlsae.splice.audits.bottleneck import ConceptClassifier
from vlsae.splice.audits.inference import wilson
from vlsae.splice.audits.table import aligned, checked_weights, labels_of, plain

SOLVERS = {"liblinear": "sigmoid", "saga": "softmax"}
INTERCEPT_SCALING = 10.0  # liblinear penalises the intercept; this makes its share negligible


@dataclass(frozen=True)
class PathPoint:
    """One penalty; the interval is Wilson's, at 95 %."""

    C: float
    accuracy: float
    low: float
    high: float
    accuracy_train: float
    n_concepts: int
    per_class: float
    classifier: ConceptClassifier


@dataclass(frozen=True)
class ConceptPath:
    """Classifiers from sparse to dense; `accuracy` is on `n` validation images, `n_train` others were fitted."""

    points: tuple[PathPoint, ...]
    n: int
    n_train: int

    def choose(self, max_concepts: int | None = None, tolerance: float = 0.01) -> ConceptClassifier:
        """The sparsest classifier that is nearly as good as the best.

        Args:
            max_concepts: look only at points that use at most so many concepts in all.
            tolerance: accuracy that may be lost against the best of these.

        Raises:
            ValueError: when no point is sparse enough.
        """
        allowed = [p for p in self.points if max_concepts is None or p.n_concepts <= max_concepts]
        if not allowed:
            fewest = min(p.n_concepts for p in self.points)
            raise ValueError(
                f"No classifier of the path uses at most {max_concepts} concepts; the sparsest uses {fewest}. "
                "Fit with smaller C."
            )
        best = max(p.accuracy for p in allowed)
        good = [p for p in allowed if p.accuracy >= best - tolerance - 1e-12]
        return min(good, key=lambda p: (p.n_concepts, -p.accuracy)).classifier

    def table(self) -> str:
        """A line a penalty."""
        rows = [
            (p.C, p.n_concepts, p.per_class, p.accuracy, f"[{p.low:.3f}, {p.high:.3f}]", p.accuracy_train)
            for p in self.points
        ]
        head = ["C", "concepts", "a class", "accuracy", "95% interval", "on training"]
        return f"{self.n_train} images to fit, {self.n} to validate\n" + aligned(head, rows)

    __str__ = table

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds: the curve, without the classifiers."""
        rows = [{k: v for k, v in vars(p).items() if k != "classifier"} for p in self.points]
        return plain({"n": self.n, "n_train": self.n_train, "points": rows,
                      "definition": "accuracy: share of validation images whose label is predicted; n_concepts: with "
                      "any coefficient; per_class: mean number a class"})  # fmt: skip


def fit_path(
    weights: Any,
    labels: Iterable[Any],
    texts: Sequence[str],
    *,
    C: Sequence[float] | None = None,
    validation: float | tuple[Any, Iterable[Any]] = 0.2,
    solver: str = "liblinear",
    min_images: int = 5,
    max_iter: int = 1000,
    seed: int = 0,
    key: str = "",
) -> ConceptPath:
    """Fit sparse logistic regressions on concept weights for a grid of penalties.

    Minimises `C sum_i loss(y_i, b + A w_i / s) + ||A||_1` with `s_j` the standard deviation of concept j. Nothing is
    centred, so zeros stay zeros. Concept bottlenecks are due to Koh et al. 2020 (arXiv 2007.04612), this sparse probe
    on weights to SpLiCE (arXiv 2402.10376, section 5).

    Args:
        weights: `[N, K]` sparse, >= 0.
        labels: one an image, at least two different ones.
        texts: K concepts.
        C: penalties, scikit-learn's convention; from 1.2 to 300 times the one where the first concept enters if None.
        validation: share of the images held out, stratified by class, or (weights, labels) of others.
        solver: "liblinear" fits one class against the rest, to convergence; "saga" fits all classes together
            (softmax), some twenty times slower.
        min_images: concepts that fewer of the fitted images have get no coefficient: after scaling, one image could
            weigh as much as a thousand.
        max_iter: of the solver.
        seed: of the split and of the solver.
        key: kept in the classifiers.

    Returns:
        The path, sparsest first.

    Raises:
        ValueError: for data that do not fit together, a class with too few images, or settings out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> w = np.where(rng.random((200, 3)) < 0.5, 0.2, 0.0)
        >>> path = fit_path(w, np.where(w[:, 1] > 0, "dog", "cat"), ["red", "puppy", "old"])
        >>> path.choose().concepts("dog")[0][0], path.choose().n_concepts
        ('puppy', 1)
    """
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}; use one of {', '.join(SOLVERS)}.")
    w = checked_weights(weights, texts)
    names, numbers = labels_of(labels, w.shape[0])
    train, held = _split(w, numbers, names, validation, seed)
    columns = np.flatnonzero(np.bincount(train[0].indices, minlength=w.shape[1]) >= min_images)
    x = sparse.csr_matrix(train[0][:, columns])
    scale = _deviation(x)
    columns, x, scale = columns[scale > 0], x[:, scale > 0], scale[scale > 0]
    if not len(columns):
        raise ValueError(f"No concept varies over {min_images} or more images; lower min_images or give more images.")
    x = sparse.csr_matrix(x @ sparse.diags(1.0 / scale))
    grid = sorted(_default_grid(x, train[1], len(names)) if C is None else [float(c) for c in C])
    if not grid or grid[0] <= 0:
        raise ValueError(f"C={C!r} was given; expected at least one number above zero.")
    link = SOLVERS[solver] if len(names) > 2 else "sigmoid"
    points = []
    for c in grid:
        coef, intercept = _fit(x, train[1], len(names), c, solver, max_iter, seed)
        coef = sparse.coo_matrix(coef / scale)
        full = sparse.csr_matrix((coef.data, (coef.row, columns[coef.col])), (len(names), w.shape[1]))
        model = ConceptClassifier(tuple(names), tuple(texts), full, intercept, link, c, x.shape[0], key)
        points.append(_point(model, train, held))
    return ConceptPath(tuple(points), held[0].shape[0], x.shape[0])


def _split(w, numbers: np.ndarray, names: list[Any], validation: Any, seed: int):
    """Matrices and label numbers to fit and to validate."""
    if isinstance(validation, tuple):
        other = checked_weights(validation[0])
        if other.shape[1] != w.shape[1]:
            raise ValueError(
                f"The validation weights have {other.shape[1]} concepts, the others {w.shape[1]}; expected the same."
            )
        found, at = labels_of(validation[1], other.shape[0], "validation labels", least=1)
        if not set(found) <= set(names):
            strange = sorted(map(str, set(found) - set(names)))
            raise ValueError(f"The validation labels {strange} are not among the fitted {names}; leave these out.")
        return (w, numbers), (other, np.array([names.index(f) for f in found])[at])
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation} was given; expected a share between 0 and 1, or (weights, labels).")
    sizes = np.bincount(numbers)
    if sizes.min() < 2:
        raise ValueError(
            f"The class {names[int(sizes.argmin())]!r} has {sizes.min()} image; expected 2 or more, to fit and to "
            "validate. Add images, leave it out, or give validation=(weights, labels)."
        )
    order = np.random.default_rng(seed).permutation(len(numbers))
    out = np.zeros(len(numbers), dtype=bool)
    for c, size in enumerate(sizes):
        out[order[numbers[order] == c][: min(size - 1, max(1, round(validation * size)))]] = True
    return (w[~out], numbers[~out]), (w[out], numbers[out])


def _deviation(x: sparse.csr_matrix) -> np.ndarray:
    n = x.shape[0]
    mean = np.bincount(x.indices, x.data, x.shape[1]) / n
    square = np.bincount(x.indices, x.data**2, x.shape[1]) / n
    variance = square - mean**2
    return np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))


def _default_grid(x: sparse.csr_matrix, numbers: np.ndarray, n: int) -> list[float]:
    # With the intercept alone, the gradient of the loss is the sum of x (y - share); it must exceed 1/C.
    steepest = max(np.abs(x.T @ ((numbers == c) - np.mean(numbers == c))).max() for c in range(n))
    return list(1.2 / max(steepest, 1e-12) * np.geomspace(1.0, 250.0, 10))


def l1_logistic(C: float, solver: str, max_iter: int, seed: int):
    """scikit-learn's logistic regression that minimises `||w||_1 + C sum_n loss_n`, not yet fitted."""
    from sklearn.linear_model import LogisticRegression

    # scikit-learn 1.8 renamed penalty="l1" to l1_ratio=1.
    penalty = {"penalty": "l1"} if getattr(LogisticRegression(), "penalty", "") == "l2" else {"l1_ratio": 1.0}
    return LogisticRegression(
        C=C, solver=solver, max_iter=max_iter, random_state=seed, intercept_scaling=INTERCEPT_SCALING, **penalty
    )


def _fit(x: sparse.csr_matrix, numbers: np.ndarray, n: int, c: float, solver: str, max_iter: int, seed: int):
    """`[n, T]` coefficients of the scaled columns and `[n]` intercepts."""
    model = l1_logistic(c, solver, max_iter, seed)
    if n == 2:
        model.fit(x, numbers)
        return np.concatenate([-model.coef_, model.coef_]), np.concatenate([-model.intercept_, model.intercept_])
    if solver == "saga":
        model.fit(x, numbers)
        return model.coef_, model.intercept_
    fitted = []
    for k in range(n):
        model.fit(x, numbers == k)
        fitted.append((model.coef_[0].copy(), float(model.intercept_[0])))
    return np.stack([f[0] for f in fitted]), np.array([f[1] for f in fitted])


def _point(model: ConceptClassifier, train, held) -> PathPoint:
    right = [float((model.logits(x).argmax(1) == y).sum()) for x, y in (train, held)]
    low, high = wilson(right[1], held[0].shape[0])
    return PathPoint(
        model.C, right[1] / held[0].shape[0], float(low), float(high), right[0] / train[0].shape[0],
        model.n_concepts, float(model.per_class.mean()), model,
    )  # fmt: skip
