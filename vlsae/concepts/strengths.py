"""Embeddings with other strengths of their concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary


def concept_directions(dictionary: Dictionary) -> Tensor:
    """What one unit of each code adds to the embedding: atoms in the units of the activations, `[n_latents, d]`.

    `d_i = W_dec_i / scale` behind an input transform `(x - mean) * scale`, else the atom itself.

    Args:
        dictionary: whose input transform, if any, is fixed for the data.

    Returns:
        `[n_latents, d]`, not of unit norm.

    Raises:
        ValueError: for a transform of each token, whose atoms are directions of no fixed length.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> bool((concept_directions(sae := ReLUDictionary(4, 8)) == sae.atoms).all())
        True
    """
    transform = dictionary.transform
    if not transform.affine:
        raise ValueError(
            f"Codes behind the transform {transform.kind!r} count in lengths of each token, so that a code adds no fixed "
            "vector; use a dictionary with a transform that is fixed for the data, such as 'centre_sqrt_d'."
        )
    return dictionary.atoms if transform.kind == "none" else dictionary.atoms / transform.scale


@torch.no_grad()
def with_strengths(dictionary: Dictionary, x: Tensor, strengths: Mapping[int, float]) -> Tensor:
    """Embeddings in which some concepts have another strength, `x' = x + sum_c (s_c - z_c) d_c`.

    MSAE (arXiv 2502.20578) decodes the changed codes; here what the dictionary does not explain is kept.

    Args:
        dictionary: trained on such embeddings.
        x: `[N, d]`.
        strengths: the wanted code of some latents; the others stay.

    Returns:
        `[N, d]`, equal to `x` where every wanted strength is the one that is there.

    Raises:
        ValueError: for a latent that does not exist, or a transform of each token.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae, x = ReLUDictionary(4, 8), torch.randn(2, 4)
        >>> changed = with_strengths(sae, x, {3: 2.0}) - x
        >>> bool(torch.allclose(changed, (2.0 - sae.encode(x)[:, 3:4]) * sae.atoms[3], atol=1e-6))
        True
    """
    latents = list(strengths)
    check_latents(dictionary, latents)
    wanted = torch.tensor([float(strengths[i]) for i in latents]).to(dictionary.W_dec)
    change = wanted - dictionary.encode_sparse(x.to(dictionary.W_dec)).columns(latents)
    return x + (change @ concept_directions(dictionary)[latents]).to(x)


def check_latents(dictionary: Dictionary, latents: Sequence[int]) -> None:
    """Refuse numbers that are no latents."""
    unknown = [i for i in latents if not 0 <= i < dictionary.n_latents]
    if unknown:
        raise ValueError(f"Latents {unknown} do not exist; the dictionary has 0 to {dictionary.n_latents - 1}.")
