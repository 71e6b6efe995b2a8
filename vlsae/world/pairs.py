"""Planted pairs: two modalities that show the same sparse concepts, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.world.planting import random_directions

SALT = 15_485_863


@dataclass(frozen=True)
class PlantedPairs:
    """Images `z_v A_v + b_v + noise` and texts `z_t A_t + b_t + noise` of one scene `z`, of which each sees its own part.

    Attributes:
        image_atoms, text_atoms: `[n_concepts, d]`, unit rows, how each modality writes a concept.
        image_bias, text_bias: `[d]`; their difference is the modality gap.
        owner: `[n_concepts]`, 2 for shared concepts, 0 for those only images show, 1 for those only texts tell.
        k, private_k: shared concepts of a pair, and private ones of each side.
        noise: standard deviation of the noise along any direction.
        seed: of `sample`.
    """

    image_atoms: Tensor
    text_atoms: Tensor
    image_bias: Tensor
    text_bias: Tensor
    owner: Tensor
    k: int
    private_k: int
    noise: float
    seed: int

    def sample(self, n: int, part: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `n` pairs: images `[n, d]`, texts `[n, d]`, and all concepts of the pair `z [n, n_concepts]`, z >= 0.

        Args:
            n: how many.
            part: another number gives independent pairs.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + part)
        active = torch.zeros(n, len(self.owner), dtype=torch.bool)
        for owner, count in ((2, self.k), (0, self.private_k), (1, self.private_k)):
            among = (self.owner == owner).nonzero()[:, 0]
            if len(among) and count:
                chosen = torch.rand(n, len(among), generator=generator).topk(count, dim=1).indices
                active.scatter_(1, among[chosen], True)
        z = active * (0.5 + torch.rand(n, len(self.owner), generator=generator))
        sides = []
        for other, atoms, bias in ((1, self.image_atoms, self.image_bias), (0, self.text_atoms, self.text_bias)):
            noise = self.noise * torch.randn(n, atoms.shape[1], generator=generator)
            sides.append((z * (self.owner != other)) @ atoms + bias + noise)
        return sides[0], sides[1], z


def planted_pairs(
    d: int = 32,
    n_shared: int = 32,
    n_private: int = 0,
    k: int = 3,
    *,
    private_k: int = 0,
    gap: float = 0.0,
    turn: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> PlantedPairs:
    """Random planted pairs.

    Args:
        d: width of both modalities.
        n_shared: concepts that both show; n_private: concepts of each modality alone.
        k, private_k: active ones a pair, of the shared and of each side's private concepts.
        gap: `||b_v - b_t||`.
        turn: how far a shared concept's text atom lies from its image atom, 0 (equal) to 1 (unrelated).
        noise: standard deviation of the noise along any direction.
        seed: of the concepts and of their samples.

    Returns:
        A `PlantedPairs`.

    Raises:
        ValueError: for impossible numbers.

    Example:
        >>> images, texts, z = planted_pairs(d=8, n_shared=6, k=2).sample(5)
        >>> torch.allclose(images, texts, atol=1e-6), int((z > 0).sum(1).max())
        (True, 2)
    """
    if not 1 <= k <= n_shared or not 0 <= private_k <= n_private or not 0 <= turn <= 1 or gap < 0:
        raise ValueError(
            f"k={k} of {n_shared} shared and {private_k} of {n_private} private concepts, turn={turn}, gap={gap}: give "
            "1 <= k <= n_shared, 0 <= private_k <= n_private, 0 <= turn <= 1 and gap >= 0."
        )
    generator = torch.Generator().manual_seed(seed * 1_000_003 + SALT)

    directions = partial(random_directions, d=d, generator=generator)
    owner = torch.cat([torch.full((n_shared,), 2), torch.zeros(n_private), torch.ones(n_private)]).long()
    images, other, offset = directions(len(owner)), directions(len(owner)), directions(1)[0]
    texts = F.normalize((1 - turn) * images + turn * other, dim=1)
    return PlantedPairs(images, texts, gap / 2 * offset, -gap / 2 * offset, owner, k, private_k, noise, seed)
