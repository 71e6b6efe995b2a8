"""A classifier that sees nothing but concepts: sparse, explained exactly, and open to correction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from vlsae.atomic import replacing
from vlsae.splice.audits.groups import GroupAccuracy, GroupCell, group_accuracy
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, checked_row, checked_weights, plain, position

FORMAT = 1


@dataclass(frozen=True)
class Contribution:
    """What one concept adds to a logit: its weight in the image times its coefficient."""

    text: str
    weight: float
    coefficient: float
    value: float


@dataclass(frozen=True)
class Explanation:
    """A logit taken apart: `logit = intercept + sum of the contributions`, which are sorted by size."""

    label: Any
    probability: float
    logit: float
    intercept: float
    contributions: tuple[Contribution, ...]

    def table(self, n: int = ROWS_SHOWN) -> str:
        """The largest contributions as text."""
        rows = [(c.text, c.weight, c.coefficient, c.value) for c in self.contributions[:n]]
        first = f"{self.label}: probability {self.probability:.3f}, logit {self.logit:.3f} = {self.intercept:.3f}"
        first += f" + {len(self.contributions)} concepts\n"
        return first + aligned(["concept", "weight", "coefficient", "contribution"], rows)

    __str__ = table

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        rows = [vars(c) for c in self.contributions]
        return plain({**vars(self), "contributions": rows})


@dataclass(frozen=True, eq=False)
class ConceptClassifier:
    """Linear classifier on SpLiCE weights, one sparse row of coefficients a class.

    `logit_c = b_c + sum_j A_cj w_j`; the prediction is the largest logit. With two classes the rows are each other's
    negative and the logit is that of the class.

    Attributes:
        classes: C labels.
        texts: K concepts.
        coef: `[C, K]` CSR, in the units of the weights.
        intercept: `[C]`.
        link: "sigmoid" (one against the rest, normalised over classes) or "softmax", for the probabilities.
        C: inverse strength of the penalty, as scikit-learn's.
        n: images it was fitted on.
        key: what the weights were made with, such as the hash of the vocabulary.
        removed: concepts taken out by `edit`.
    """

    classes: tuple[Any, ...]
    texts: tuple[str, ...]
    coef: sparse.csr_matrix
    intercept: np.ndarray
    link: str
    C: float
    n: int
    key: str = ""
    removed: tuple[str, ...] = ()

    @classmethod
    def fit_path(cls, weights: Any, labels: Iterable[Any], texts: Sequence[str], **settings: Any):
        """Fit for a grid of penalties; see `vlsae.splice.audits.fit_path` for the settings. Returns a ConceptPath."""
        from vlsae.splice.audits.path import fit_path

        return fit_path(weights, labels, texts, **settings)

    @property
    def n_concepts(self) -> int:
        """Concepts with any coefficient."""
        return len(np.unique(self.coef.indices))

    @property
    def per_class(self) -> np.ndarray:
        """`[C]` concepts with a coefficient in each class."""
        return np.diff(self.coef.indptr)

    def concepts(self, label: Any) -> list[tuple[str, float]]:
        """Concepts and coefficients of one class, largest magnitude first."""
        row = self.coef[position(label, self.classes, "class")]
        order = np.argsort(-np.abs(row.data), kind="stable")
        return [(self.texts[row.indices[i]], float(row.data[i])) for i in order]

    def logits(self, weights: Any) -> np.ndarray:
        """`[N, C]` logits of `[N, K]` weights."""
        return np.asarray((self._fitting(weights) @ self.coef.T).todense()) + self.intercept

    def probabilities(self, weights: Any) -> np.ndarray:
        """`[N, C]`, rows sum to one."""
        from scipy.special import expit, softmax

        logits = self.logits(weights)
        if self.link == "softmax":
            return softmax(logits, axis=1)
        each = expit(logits)
        return each / np.maximum(each.sum(1, keepdims=True), np.finfo(float).tiny)

    def predict(self, weights: Any) -> list[Any]:
        """The most probable label of every image."""
        return [self.classes[c] for c in self.logits(weights).argmax(1)]

    def accuracy(self, weights: Any, labels: Iterable[Any]) -> float:
        """Share of images whose label is predicted."""
        labels = list(labels)
        return group_accuracy(self.predict(weights), labels, [0] * len(labels)).average

    def group_accuracy(self, weights: Any, labels: Iterable[Any], groups: Iterable[Any]) -> GroupAccuracy:
        """Accuracy in every class and group."""
        return group_accuracy(self.predict(weights), labels, groups)

    def worst_group_accuracy(self, weights: Any, labels: Iterable[Any], groups: Iterable[Any]) -> GroupCell:
        """The class and group with the lowest accuracy, with its size and interval."""
        return self.group_accuracy(weights, labels, groups).worst

    def explain(self, row: Any, label: Any = None) -> Explanation:
        """Take the logit of one image apart.

        Args:
            row: its weights, `[K]` or `[1, K]`.
            label: whose logit; the predicted one where None.

        Returns:
            Contributions `A_cj w_j`; their sum and the intercept are the logit.

        Raises:
            ValueError: for more than one image, another number of concepts, or an unknown label.
        """
        row = checked_row(row, len(self.texts))
        logits, probabilities = self.logits(row)[0], self.probabilities(row)[0]
        c = int(logits.argmax()) if label is None else position(label, self.classes, "class")
        used = self.coef[c].multiply(row).tocsr()
        order = np.argsort(-np.abs(used.data), kind="stable")
        parts = tuple(
            Contribution(self.texts[j], float(row[0, j]), float(self.coef[c, j]), float(v))
            for j, v in zip(used.indices[order], used.data[order])
        )
        return Explanation(self.classes[c], float(probabilities[c]), float(logits[c]), float(self.intercept[c]), parts)

    def edit(self, remove: Iterable[str]) -> ConceptClassifier:
        """The same classifier blind to some concepts, as if every image's weight of them were zero.

        Raises:
            ValueError: for concepts that are not in the vocabulary.
        """
        remove = [remove] if isinstance(remove, str) else list(remove)
        keep = np.ones(len(self.texts))
        keep[[position(text, self.texts) for text in remove]] = 0.0
        coef = sparse.csr_matrix(self.coef @ sparse.diags(keep))
        coef.eliminate_zeros()
        return replace(self, coef=coef, removed=tuple(dict.fromkeys((*self.removed, *remove))))

    def table(self, n: int = ROWS_SHOWN) -> str:
        """The largest coefficients of every class as text."""
        each = max(1, n // len(self.classes))
        rows = [(str(c), text, value) for c in self.classes for text, value in self.concepts(c)[:each]][:n]
        first = (
            f"{len(self.classes)} classes, {self.n_concepts} of {len(self.texts)} concepts, fitted on {self.n} images"
        )
        return f"{first}, C = {self.C:.3g}\n" + aligned(["class", "concept", "coefficient"], rows)

    def __str__(self) -> str:
        return self.table()

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds; enough to make the classifier again."""
        coo = self.coef.tocoo()
        return plain({"vlsae_concept_classifier": FORMAT, "classes": self.classes, "texts": self.texts,
                      "rows": coo.row, "columns": coo.col, "values": coo.data, "intercept": self.intercept,
                      "link": self.link, "C": self.C, "n": self.n, "key": self.key, "removed": self.removed})  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write as JSON and return the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.as_dict(), ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> ConceptClassifier:
        """Read what `save` wrote; a file that is something else raises a ValueError."""
        path = Path(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["vlsae_concept_classifier"] != FORMAT:
                raise ValueError(f"it has format {found['vlsae_concept_classifier']}, this version reads {FORMAT}")
            shape = (len(found["classes"]), len(found["texts"]))
            at = (np.asarray(found["rows"], np.int32), np.asarray(found["columns"], np.int32))
            coef = sparse.csr_matrix((np.asarray(found["values"], np.float64), at), shape)
            return cls(tuple(found["classes"]), tuple(found["texts"]), coef, np.asarray(found["intercept"]),
                       found["link"], found["C"], found["n"], found["key"], tuple(found["removed"]))  # fmt: skip
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no concept classifier ({error}); write one with `save`.") from error

    def _fitting(self, weights: Any) -> sparse.csr_matrix:
        w = checked_weights(weights)
        if w.shape[1] != len(self.texts):
            raise ValueError(
                f"The weights have {w.shape[1]} concepts and the classifier {len(self.texts)}; expected the same. "
                "Decompose with the vocabulary it was fitted on."
            )
        return w
