"""A forest over latents: a parent is active wherever its child is, and more often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.activations.reader import ActivationStore
from vlsae.concepts.coactivation import CoActivations, co_activations
from vlsae.dictionaries.base import Dictionary

PAIRS = 2**16  # cosines at a time


@dataclass(frozen=True)
class Forest:
    """Trees over latents.

    Attributes:
        parent: `[m]`, the number of a latent's parent; -1 for a root.
        strength: `[m]`, P(parent | latent), the share of the latent's samples on which its parent is active too; NaN for
            roots.
        density: `[m]`, share of samples on which a latent is active.
        levels: `[m]`, the prefix of the dictionary that a latent is in; 0 where there are none.

    Raises:
        ValueError: for arrays of different lengths, parents that do not exist, or a circle.

    Example:
        >>> forest = Forest.of_parents([-1, 0, 1, -1])
        >>> forest.roots.tolist(), forest.children(0).tolist(), forest.path(2), forest.depth.tolist()
        ([0, 3], [1], [0, 1, 2], [0, 1, 2, 0])
    """

    parent: np.ndarray
    strength: np.ndarray
    density: np.ndarray
    levels: np.ndarray

    def __post_init__(self) -> None:
        m = len(self.parent)
        if {len(self.strength), len(self.density), len(self.levels)} != {m}:
            raise ValueError(
                f"{m} parents, {len(self.strength)} strengths, {len(self.density)} densities and {len(self.levels)} levels; "
                "each latent has one of each."
            )
        if m and (self.parent.min() < -1 or self.parent.max() >= m):
            raise ValueError(f"Parents lie in {self.parent.min()} to {self.parent.max()}; expected -1 to {m - 1}.")
        _ = self.depth

    @classmethod
    def of_parents(cls, parent) -> Forest:
        """A forest of which only the parents are known, such as a true one: full strengths, no densities."""
        parent = np.asarray(parent, np.int64)
        strength = np.where(parent >= 0, 1.0, np.nan)
        return cls(parent, strength, np.full(len(parent), np.nan), np.zeros(len(parent), np.int64))

    @cached_property
    def depth(self) -> np.ndarray:
        """`[m]` steps from a latent to its root."""
        depth, at = np.zeros(len(self.parent), np.int64), self.parent.copy()
        for _ in range(len(self.parent) + 1):
            if not (at >= 0).any():
                return depth
            depth += at >= 0
            at = np.where(at >= 0, self.parent[at], -1)
        raise ValueError(
            f"The parents of latent {np.argmax(at >= 0)} go in a circle; every path must end in a root, -1."
        )

    @cached_property
    def roots(self) -> np.ndarray:
        """Numbers of the latents without a parent, alone or at the head of a tree, rising."""
        return np.flatnonzero(self.parent < 0)

    @cached_property
    def size(self) -> np.ndarray:
        """`[m]` latents of the tree below and including each latent."""
        size = np.ones(len(self.parent), np.int64)
        for i in np.argsort(-self.depth, kind="stable"):
            if self.parent[i] >= 0:
                size[self.parent[i]] += size[i]
        return size

    @cached_property
    def _by_parent(self) -> dict[int, np.ndarray]:
        members = np.flatnonzero(self.parent >= 0)
        members = members[np.argsort(self.parent[members], kind="stable")]
        heads, starts = np.unique(self.parent[members], return_index=True)
        return dict(zip(heads.tolist(), np.split(members, starts[1:]), strict=False))

    def children(self, latent: int) -> np.ndarray:
        """Numbers of the latents whose parent this one is, rising."""
        return self._by_parent.get(int(latent), np.empty(0, np.int64))

    def path(self, latent: int) -> list[int]:
        """From the root to the latent, both included."""
        found = [int(latent)]
        while self.parent[found[-1]] >= 0:
            found.append(int(self.parent[found[-1]]))
        return found[::-1]

    def save(self, path: str | Path) -> Path:
        """Write one `.npz` file; returns its path."""
        path = Path(path).with_suffix(".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, parent=self.parent, strength=self.strength, density=self.density, levels=self.levels)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Forest:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in ("parent", "strength", "density", "levels")})


def prefix_levels(dictionary: Dictionary) -> np.ndarray:
    """The prefix in which each latent first appears, `[n_latents]`, from 0; all 0 for a dictionary without prefixes.

    Example:
        >>> from vlsae.dictionaries.nested_dictionary import NestedDictionaryMatryoshka
        >>> prefix_levels(NestedDictionaryMatryoshka(d=4, n_latents=6, k=2, prefixes=[2, 6])).tolist()
        [0, 0, 1, 1, 1, 1]
    """
    prefixes = getattr(dictionary, "prefixes", [dictionary.n_latents])
    return np.searchsorted(prefixes, np.arange(dictionary.n_latents), side="right")


def concept_forest(
    dictionary: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    unit: str = "token",
    threshold: float | np.ndarray = 0.0,
    **rules,
) -> Forest:
    """The forest of a dictionary's latents on some activations: each latent under the most specific one that it implies.

    One pass counts activations (`co_activations`), then `forest_of` chooses parents by `P(parent | child)`, the
    dictionary's prefixes and the cosine of atoms. Feature trees of Matryoshka SAEs: Bussmann et al. 2025 (arXiv
    2503.17547), which draws its edges by a similarity of activations where the child is active.

    Args:
        dictionary: whose latents; one with `prefixes` never has a parent in a later prefix than its child.
        activations: a store, or a tensor `[N, d]` or `[images, tokens, d]`, of data that were not trained on.
        unit: "token": active together on a token; "image": anywhere in one image.
        threshold: strengths at or below it do not count as active; a number or `[n_latents]`.
        **rules: of `forest_of`: `min_conditional`, `min_lift`, `min_count`, `geometry`.

    Returns:
        `Forest` over all latents.

    Raises:
        ValueError: for an unknown unit, another width, or rules out of range.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> concept_forest(ReLUDictionary(4, 8), torch.randn(100, 4)).parent.shape
        (8,)
    """
    seen = co_activations(dictionary, activations, unit=unit, threshold=threshold)
    return forest_of(seen, levels=prefix_levels(dictionary), atoms=dictionary.atoms, **rules)


def forest_of(
    seen: CoActivations,
    *,
    levels: np.ndarray | None = None,
    atoms: Tensor | None = None,
    min_conditional: float = 0.8,
    min_lift: float = 1.5,
    min_count: int = 10,
    geometry: float = 0.5,
) -> Forest:
    """Parents from counts: among latents active on nearly all samples of the child, the one that fits it closest.

    A parent `p` of `c` is active more often (`n_p > n_c`), on nearly all of the child's samples
    (`P(p | c) = n_pc / n_c >= min_conditional`), more than by chance (`P(p | c) / P(p) >= min_lift`), and in no later
    level. Of several, the one with the largest `n_pc / (n_p + n_c - n_pc) * (1 + geometry max(0, cos(p, c)))` is taken:
    all ancestors hold the child, the nearest is the rarest of them. No circle can arise, since parents are more frequent.

    Args:
        seen: counts of activations.
        levels: `[m]`, the prefix of each latent; all alike where None.
        atoms: `[m, d]` for the cosines; they count for nothing where None.
        min_conditional: above 0, at most 1.
        min_lift: at least 0; 1 would let a latent that is always active be the parent of any.
        min_count: samples that a child must be active on, at least 1.
        geometry: weight of the cosine; 0 ignores atoms.

    Returns:
        `Forest`; latents without such a parent, silent ones included, are roots.

    Raises:
        ValueError: for rules out of range, or levels or atoms of another number of latents.

    Example:
        >>> from vlsae.dictionaries.base import Codes
        >>> z = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> forest_of(CoActivations(3).add(Codes.from_dense(z)), min_lift=1.2, min_count=1).parent.tolist()
        [-1, 0, 0]
    """
    _check_rules(min_conditional, min_lift, min_count, geometry)
    m = seen.n_latents
    levels = np.zeros(m, np.int64) if levels is None else np.asarray(levels)
    if len(levels) != m or (atoms is not None and len(atoms) != m):
        raise ValueError(
            f"Counts of {m} latents, {len(levels)} levels, {m if atoms is None else len(atoms)} atoms; give one dictionary's."
        )
    count, pairs = seen.count, seen.pairs.tocoo()
    child, candidate, both = pairs.row.astype(np.int64), pairs.col.astype(np.int64), pairs.data
    allowed = (count[child] >= min_count) & (count[candidate] > count[child]) & (levels[candidate] <= levels[child])
    allowed &= both >= min_conditional * count[child]
    allowed &= both * seen.n >= min_lift * count[child].astype(float) * count[candidate]
    child, candidate, both = child[allowed], candidate[allowed], both[allowed]
    fit = both / (count[child] + count[candidate] - both)
    if atoms is not None and geometry:
        fit = fit * (1 + geometry * _cosines(atoms, child, candidate).clip(0))
    best_last = np.lexsort((-candidate, fit, child))
    child, candidate, both = child[best_last], candidate[best_last], both[best_last]
    parent, strength = np.full(m, -1, np.int64), np.full(m, np.nan)
    parent[child], strength[child] = candidate, both / count[child]  # of equal numbers numpy keeps the last
    return Forest(parent, strength, seen.density, levels)


def _check_rules(min_conditional: float, min_lift: float, min_count: int, geometry: float) -> None:
    if not 0 < min_conditional <= 1 or min_lift < 0 or min_count < 1 or geometry < 0:
        raise ValueError(
            f"min_conditional={min_conditional}, min_lift={min_lift}, min_count={min_count}, geometry={geometry}: give a "
            "share above 0 and up to 1, a lift of at least 0, a count of at least 1 and a weight of at least 0."
        )


def _cosines(atoms: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of pairs of atoms, some at a time: all of them would be the largest tensor here."""
    unit = F.normalize(atoms.detach().float().cpu(), dim=1)
    pairs = zip(torch.from_numpy(first).split(PAIRS), torch.from_numpy(second).split(PAIRS), strict=True)
    return torch.cat([(unit[a] * unit[b]).sum(1) for a, b in pairs] or [torch.empty(0)]).double().numpy()
