"""Data of a tree of concepts: a parent alone, or a parent with one of its children."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FAMILIES, CHILDREN, CHILDLESS = 3, 3, 8


@dataclass(frozen=True)
class ConceptTree:
    """Eleven parents, three of which have three children each; `x = z atoms` with exactly one parent a sample.

    The tree of arXiv 2506.03093, section 4: a parent with children appears with probability .2 and brings each of its
    children with .2 (none with .4); each of the other eight parents with .05.

    Attributes:
        atoms: `[20, d]`, unit rows, parents first; rows of different levels are orthogonal.
        parent: `[20]`, the number of an atom's parent, -1 for parents.
        spread: standard deviation of the coefficients, whose mean is 1.5.
        seed: of `sample`.
    """

    atoms: Tensor
    parent: Tensor
    spread: float
    seed: int

    @property
    def level(self) -> Tensor:
        """`[20]`, 0 for parents, 1 for children."""
        return (self.parent >= 0).long()

    @property
    def mean_l0(self) -> float:
        """Active atoms of a sample: the parent, and with probability .36 a child."""
        return 1 + FAMILIES * 0.2 * CHILDREN * 0.2

    def sample(self, n: int, part: int = 0) -> tuple[Tensor, Tensor]:
        """Draw `(x [n, d], z [n, 20])`; another `part` is independent of this one."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + part)
        parents = FAMILIES + CHILDLESS
        chance = torch.tensor([0.2] * FAMILIES + [0.05] * CHILDLESS)
        chosen = torch.multinomial(chance, n, replacement=True, generator=generator)
        child = torch.rand(n, generator=generator).div(0.2).long()  # 0, 1, 2 a child, beyond: none
        active = torch.zeros(n, len(self.atoms), dtype=torch.bool)
        active[torch.arange(n), chosen] = True
        has = ((chosen < FAMILIES) & (child < CHILDREN)).nonzero()[:, 0]
        active[has, parents + chosen[has] * CHILDREN + child[has]] = True
        z = active * (1.5 + self.spread * torch.randn(n, len(self.atoms), generator=generator)).clamp_min(0.0)
        return z @ self.atoms, z


def concept_tree(d: int = 20, correlation: float = 0.0, spread: float = 0.25, seed: int = 0) -> ConceptTree:
    """A random tree of 20 concepts.

    Args:
        d: width, at least 20.
        correlation: cosine of any two atoms of one level, 0 to below 1; those of two levels stay orthogonal.
        spread: standard deviation of the coefficients.
        seed: of the atoms and of the samples.

    Raises:
        ValueError: for impossible numbers.

    Example:
        >>> tree = concept_tree(correlation=0.5)
        >>> round(float(tree.atoms[0] @ tree.atoms[1]), 4), round(abs(float(tree.atoms[0] @ tree.atoms[15])), 4)
        (0.5, 0.0)
    """
    parents, children = FAMILIES + CHILDLESS, FAMILIES * CHILDREN
    n = parents + children
    if d < n or not 0 <= correlation < 1:
        raise ValueError(f"d={d}, correlation={correlation}: give d of at least {n} and 0 <= correlation < 1.")
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 99_991)
    basis = torch.linalg.qr(torch.randn(d, n, dtype=torch.float64, generator=generator))[0].T
    mixed = [
        _equiangular(size, correlation) @ rows
        for size, rows in zip((parents, children), basis.split([parents, children]), strict=True)
    ]
    parent = torch.full((n,), -1)
    parent[parents:] = torch.arange(children) // CHILDREN
    return ConceptTree(torch.cat(mixed).float(), parent, spread, seed)


def _equiangular(n: int, cosine: float) -> Tensor:
    """The symmetric root of a matrix with ones on the diagonal and `cosine` elsewhere."""
    values, vectors = torch.linalg.eigh((1 - cosine) * torch.eye(n, dtype=torch.float64) + cosine)
    return vectors * values.sqrt() @ vectors.T
