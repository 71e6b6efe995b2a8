"""Sparse data whose dictionary is known: the ground truth of every dictionary test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

SALT = 7_368_787


def random_directions(n: int, d: int, generator: torch.Generator) -> Tensor:
    """`[n, d]`, unit rows without preference."""
    return F.normalize(torch.randn(n, d, generator=generator), dim=1)


@dataclass(frozen=True)
class Planted:
    """A planted dictionary and how it makes data: `x = z atoms + bias + noise`.

    Attributes:
        atoms: `[n_atoms, d]`, unit rows.
        bias: `[d]`.
        k: active atoms a sample.
        frequency: `[n_atoms]`, relative rates of atoms that are free to fire.
        parent: `[n_atoms]`, number of the atom without which an atom never fires; -1 for roots.
        group: `[n_atoms]`, number of the group; atoms of one group are coherent.
        modality: `[n_atoms]`, 0 (fires in the first modality only), 1 (in the second only) or 2 (in both).
        noise: standard deviation of the noise along any direction.
        seed: of `sample`.
    """

    atoms: Tensor
    bias: Tensor
    k: int
    frequency: Tensor
    parent: Tensor
    group: Tensor
    modality: Tensor
    noise: float
    seed: int

    def sample(self, n: int, part: int = 0, modality: int | None = None) -> tuple[Tensor, Tensor]:
        """Draw `n` vectors: `(x [n, d], z [n, n_atoms])`, z >= 0 with at most `k` chosen atoms and their parents.

        Args:
            n: how many.
            part: another number gives independent samples (training, test, ...).
            modality: 0 or 1 for samples of one modality; None lets every atom fire.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + part)
        weight = self.frequency.clone()
        if modality is not None:
            weight = torch.where((self.modality == modality) | (self.modality == 2), weight, 0.0)
        gumbel = -torch.log(-torch.log(torch.rand(n, len(weight), generator=generator).clamp(1e-9, 1 - 1e-7)))
        chosen = (weight.log() + gumbel).topk(self.k, dim=1).indices
        active = torch.zeros(n, len(weight), dtype=torch.bool).scatter(1, chosen, True)
        for atom in (self.parent >= 0).nonzero()[:, 0].tolist():
            active[:, self.parent[atom]] |= active[:, atom]
        z = active * (0.5 + torch.rand(n, len(weight), generator=generator))
        noise = self.noise * torch.randn(n, self.atoms.shape[1], generator=generator)
        return z @ self.atoms + self.bias + noise, z


def planted(
    d: int = 32,
    n_atoms: int = 64,
    k: int = 3,
    *,
    coherence: float = 0.0,
    n_groups: int = 1,
    children: int = 0,
    shared: float = 1.0,
    decay: float = 1.0,
    bias: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """A random planted dictionary.

    Args:
        d: width.
        n_atoms: number of atoms.
        k: atoms drawn a sample, 1 to `n_atoms`.
        coherence: about the cosine between atoms of one group, 0 to below 1.
        n_groups: groups that share a direction.
        children: children of every root; an atom fires only together with its parent. 0 for a flat dictionary.
        shared: share of atoms that fire in both modalities; the rest is split evenly.
        decay: frequency of atom `i` is `decay^i`.
        bias: norm of the bias.
        noise: standard deviation of the noise along any direction.
        seed: of the dictionary and of its samples.

    Returns:
        A `Planted`.

    Raises:
        ValueError: for impossible numbers.

    Example:
        >>> from vlsae.world import planted
        >>> x, z = planted(d=8, n_atoms=16, k=2).sample(5)
        >>> x.shape, int((z > 0).sum(1).max())
        (torch.Size([5, 8]), 2)
    """
    if not 1 <= k <= n_atoms or not 0 <= coherence < 1 or not 0 <= shared <= 1 or not 0 < decay <= 1:
        raise ValueError(
            f"k={k} of {n_atoms} atoms, coherence={coherence}, shared={shared}, decay={decay}: give 1 <= k <= n_atoms, "
            "0 <= coherence < 1, 0 <= shared <= 1 and 0 < decay <= 1."
        )
    # far from the generators of initial weights: with equal seeds a dictionary would start at the truth
    generator = torch.Generator().manual_seed(seed * 1_000_003 + SALT)

    directions = partial(random_directions, d=d, generator=generator)
    group = torch.arange(n_atoms) % n_groups
    common, own = directions(n_groups)[group], directions(n_atoms)
    own = F.normalize(own - (own * common).sum(1, keepdim=True) * common, dim=1) if coherence > 0 else own
    atoms = F.normalize(coherence**0.5 * common + (1 - coherence) ** 0.5 * own, dim=1) if coherence > 0 else own
    index = torch.arange(n_atoms)
    is_child = index % (children + 1) != 0
    modality = torch.where(torch.rand(n_atoms, generator=generator) < shared, 2, index % 2)
    return Planted(
        atoms=atoms,
        bias=bias * directions(1)[0],
        k=k,
        frequency=decay ** index.float(),
        parent=torch.where(is_child, index - index % (children + 1), -1),
        group=group,
        modality=modality,
        noise=noise,
        seed=seed,
    )
