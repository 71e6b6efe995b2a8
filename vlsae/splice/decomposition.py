"""The result of SpLiCE: concept weights beside the embeddings they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from vlsae.splice.embedding import EmbeddedVocabulary
from vlsae.splice.weights import ConceptWeights


@dataclass(frozen=True)
class Decomposition:
    """Sparse concept weights of `N` embeddings.

    Attributes:
        codes: weights with their certificates.
        embeddings: the unit embeddings, `[N, e]`.
        reconstruction: what the weights give back, unit, `[N, e]`.
        space: the vocabulary in the model's space.
        modality: "image" or "text".
        names: of every sample: its file, its text, or "#3".
        labels: class number of every sample, -1 for none.
    """

    codes: ConceptWeights
    embeddings: np.ndarray
    reconstruction: np.ndarray
    space: EmbeddedVocabulary
    modality: str
    names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def weights(self) -> scipy.sparse.csr_matrix:
        """CSR `[N, K]`."""
        return self.codes.weights

    @property
    def texts(self) -> tuple[str, ...]:
        """The concepts of the columns."""
        return self.space.vocabulary.texts

    @property
    def l0(self) -> np.ndarray:
        """Number of concepts a sample, `[N]`."""
        return self.codes.l0

    @property
    def cosine(self) -> np.ndarray:
        """Cosine of reconstruction and embedding, `[N]`."""
        return np.einsum("ne,ne->n", self.reconstruction, self.embeddings)

    def top(self, i: int, n: int | None = None) -> list[tuple[str, float]]:
        """The strongest concepts of sample `i` with their weights, strongest first (equal weights: by number)."""
        row = self.weights[i]
        order = np.lexsort((row.indices, -row.data))[:n]
        return [(self.texts[row.indices[j]], float(row.data[j])) for j in order]

    def table(self, i: int, n: int = 12) -> str:
        """The strongest concepts of sample `i` as aligned text with bars, and what is behind them."""
        rows = self.top(i, n)
        if not rows:
            return "no concept: the penalty is larger than every correlation"
        width, largest = max(len(text) for text, _ in rows), rows[0][1]
        lines = [f"{text:<{width}}  {w:.3f}  {'#' * max(1, round(30 * w / largest))}" for text, w in rows]
        rest = int(self.l0[i]) - len(rows)
        tail = f"{self.l0[i]} concepts, cosine {self.cosine[i]:.3f}, duality gap {self.codes.gap[i]:.1e}"
        return "\n".join([*lines, f"... and {rest} more" if rest > 0 else "", tail]).replace("\n\n", "\n")

    def as_dict(self, i: int) -> dict:
        """Sample `i` for machines."""
        gap = float(self.codes.gap[i])
        return {
            "name": self.names[i], "concepts": [{"concept": t, "weight": w} for t, w in self.top(i)],
            "l0": int(self.l0[i]), "cosine": float(self.cosine[i]), "gap": None if np.isnan(gap) else gap,
            "l1": float(self.codes.l1[i]),
        }  # fmt: skip
