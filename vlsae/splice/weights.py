"""What a decomposition is: sparse non-negative weights with a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse


@dataclass(frozen=True)
class ConceptWeights:
    """Sparse non-negative weights of `N` samples on `K` concepts.

    Attributes:
        weights: scipy CSR `[N, K]`, float32, sorted by concept within a row, no stored zeros.
        gap: duality gap a sample, `[N]` float64, in the objective `||z - wC||^2 + l1 ||w||_1`: no other weights are
            better by more than this. NaN where the weights do not solve that problem (a fixed number of concepts).
        l1: the penalty, `[N]`; 0 where there was none.

    Example:
        >>> import numpy as np
        >>> from vlsae.splice import solve
        >>> found = solve(np.array([[1.0, 0.0]]), np.eye(2), l1=0.5)
        >>> found.to_scipy().toarray().tolist(), found.l0.tolist(), bool(found.gap[0] < 1e-6)
        ([[0.75, 0.0]], [1], True)
    """

    weights: scipy.sparse.csr_matrix
    gap: np.ndarray
    l1: np.ndarray

    def __len__(self) -> int:
        return self.weights.shape[0]

    @property
    def l0(self) -> np.ndarray:
        """Number of concepts a sample, `[N]`."""
        return np.diff(self.weights.indptr)

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """The weights as a scipy CSR matrix `[N, K]`."""
        return self.weights

    def dense(self) -> np.ndarray:
        """The weights as a dense array `[N, K]`."""
        return self.weights.toarray()
