"""A dictionary of another's atoms: which directions its latents are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vlsae.dictionaries.base import Dictionary
from vlsae.training.loop import train


@dataclass(frozen=True)
class MetaDictionary:
    """A dictionary whose data were the unit atoms of another (Leask et al. 2025, arXiv 2502.04878, section 5).

    Attributes:
        base: the dictionary that is explained; meta: the dictionary over its atoms.
    """

    base: Dictionary
    meta: Dictionary

    @property
    def explained_variance(self) -> float:
        """Centred share of the variance of the base's unit atoms that the meta-latents explain."""
        atoms = F.normalize(self.base.atoms, dim=1)
        left = (atoms - self.meta(atoms)).square().sum()
        return float(1 - left / (atoms - atoms.mean(0)).square().sum())

    def explain(self, latent: int, top: int = 5, examples: int = 5) -> list[tuple[int, float, list[int]]]:
        """The meta-latents of a base latent, largest first: number, weight, and base latents that have most of it.

        Raises:
            ValueError: for a latent that does not exist.
        """
        if not 0 <= latent < self.base.n_latents:
            raise ValueError(f"Latent {latent} does not exist; the dictionary has 0 to {self.base.n_latents - 1}.")
        z = self.meta.encode(F.normalize(self.base.atoms, dim=1))
        values, numbers = z[latent].topk(min(top, self.meta.n_latents))
        return [
            (int(i), float(v), z[:, i].topk(min(examples, len(z))).indices.tolist())
            for v, i in zip(values, numbers, strict=True)
            if v > 0
        ]


def train_meta(dictionary: Dictionary, n_latents: int, k: int = 4, arch: str = "batch_topk", **options: Any):
    """Train a dictionary on the unit atoms of another; without decoder bias, so that parts have one origin.

    Args:
        dictionary: whose latents are taken apart.
        n_latents: of the meta-dictionary; the paper has 2,304 for 49,152 latents.
        k: active meta-latents a latent (the paper's 4).
        arch: the family; the paper's BatchTopK, or "topk" for small dictionaries.
        **options: as for `train`; all atoms are a batch where `batch_size` is not given.

    Returns:
        A `MetaDictionary`.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> meta = train_meta(TopKDictionary(8, 32, k=4), n_latents=4, k=2, steps=2, progress=False)
        >>> len(meta.explain(0)) <= 4
        True
    """
    atoms = F.normalize(dictionary.atoms.float(), dim=1).cpu()
    options = {"batch_size": len(atoms), "dead_after_tokens": 20 * len(atoms), "b_dec_init": "none", **options}
    with torch.enable_grad():
        return MetaDictionary(dictionary, train(atoms, arch, n_latents=n_latents, k=k, **options))
