"""Edits of concept weights as data, and what they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from vlsae.splice.audits import GroupAccuracy, group_accuracy
from vlsae.splice.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vlsae.splice.model import SpLiCE


@dataclass(frozen=True)
class Edited:
    """Embeddings after an edit of their concepts.

    Attributes:
        embeddings: unit, `[N, e]`.
        weights: the edited weights, CSR `[N, K]`.
        cosine: of every new embedding with the one before, `[N]`.
        mode: how the edit was made.
    """

    embeddings: np.ndarray
    weights: scipy.sparse.csr_matrix
    cosine: np.ndarray
    mode: str


def edit_weights(
    weights: scipy.sparse.csr_matrix, vocabulary: Vocabulary, remove: Sequence[str], clamp: Mapping[str, float],
    add: Mapping[str, float],
) -> scipy.sparse.csr_matrix:  # fmt: skip
    """Non-negative weights with some concepts removed, set or shifted, in this order.

    Raises:
        ValueError: for an unknown concept, one that is named twice, or a clamp that is negative or not finite.

    Example:
        >>> w = scipy.sparse.csr_matrix([[0.5, 0.0, 0.2]])
        >>> words = Vocabulary(["dog", "red", "sky"])
        >>> edit_weights(w, words, ["dog"], {"red": 0.3}, {"sky": -1.0}).toarray().tolist()
        [[0.0, 0.3, 0.0]]
    """
    if isinstance(remove, str):
        raise ValueError(f"remove={remove!r} is a string; give a list of concepts.")
    named = [*remove, *clamp, *add]
    twice = next((c for c in named if named.count(c) > 1), None)
    if twice is not None:
        raise ValueError(f"The concept {twice!r} is edited twice; name it in one of remove, clamp and add.")
    for kind, values in (("clamp", clamp), ("add", add)):
        for concept, value in values.items():
            if not np.isfinite(value) or (kind == "clamp" and value < 0):
                raise ValueError(f"{kind}={{{concept!r}: {value}}}; weights are finite and at least 0.")
    columns = {c: vocabulary.index(c) for c in named}
    edited = weights.tolil(copy=True)
    for concept, column in columns.items():
        if concept in add:
            new = np.maximum(weights[:, [column]].toarray() + add[concept], 0.0)
        else:
            new = np.full((weights.shape[0], 1), clamp.get(concept, 0.0))
        edited[:, column] = new
    found = edited.tocsr().astype(weights.dtype)
    found.eliminate_zeros()
    return found


@dataclass(frozen=True)
class EditAudit:
    """A classifier before and after concepts were taken out of what it sees.

    Attributes:
        removed: the concepts.
        before, after: accuracy in every cell of class and group.
        changed: share of images whose predicted class changed.
        cosine: mean cosine of the embeddings before and after.
    """

    removed: tuple[str, ...]
    before: GroupAccuracy
    after: GroupAccuracy
    changed: float
    cosine: float

    def table(self) -> str:
        """Both tables, and in one line what the edit cost."""
        cost = f"{self.changed:.1%} of predictions changed, mean cosine of the embeddings {self.cosine:.3f}"
        return f"before\n{self.before}\n\nwithout {', '.join(self.removed)}\n{self.after}\n\n{cost}"

    __str__ = table


def audit_edit(
    splice: SpLiCE, inputs, labels: Sequence, groups: Sequence, predict: Callable[[np.ndarray], Sequence], *,
    remove: Sequence[str], mode: str = "error_preserving",
) -> EditAudit:  # fmt: skip
    """Worst-group accuracy of a classifier of embeddings before and after concepts are removed.

    Args:
        splice: model and vocabulary.
        inputs: a `Decomposition`, or what `SpLiCE.decompose` takes.
        labels, groups: right class, and group (such as the background), of every image.
        predict: embeddings `[N, e]` to classes, such as a fitted scikit-learn classifier's `predict`.
        remove: concepts to take out; mode: see `SpLiCE.intervene`.

    Returns:
        `EditAudit`.
    """
    found = inputs if hasattr(inputs, "codes") else splice.decompose(inputs)
    edited = splice.intervene(found, remove=remove, mode=mode)
    old, new = np.asarray(predict(found.embeddings)), np.asarray(predict(edited.embeddings))
    before, after = group_accuracy(old, labels, groups), group_accuracy(new, labels, groups)
    return EditAudit(tuple(remove), before, after, float((old != new).mean()), float(edited.cosine.mean()))
