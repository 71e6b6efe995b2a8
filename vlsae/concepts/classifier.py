"""How a linear classifier of embeddings depends on concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlsae.concepts.strengths import check_latents, concept_directions
from vlsae.dictionaries.base import Dictionary


def _checked(dictionary: Dictionary, weight: Tensor) -> Tensor:
    """The classifier's weight as `[C, d]` in the dictionary's precision."""
    if weight.ndim != 2 or weight.shape[1] != dictionary.d:
        raise ValueError(
            f"The classifier's weight is {list(weight.shape)}; expected [C, {dictionary.d}], a row a class."
        )
    return weight.detach().to(dictionary.W_dec)


@torch.no_grad()
def concept_effects(dictionary: Dictionary, weight: Tensor) -> Tensor:
    """By how much one unit of each concept raises each logit, `<w_c, d_i>` (MSAE, arXiv 2502.20578).

    Args:
        dictionary: of the embeddings that the classifier reads.
        weight: `[C, d]`, a row a class (one for a probe of yes and no).

    Returns:
        `[n_latents, C]`.

    Raises:
        ValueError: for a weight of another width, or a dictionary without fixed directions.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> concept_effects(ReLUDictionary(4, 8), torch.randn(3, 4)).shape
        torch.Size([8, 3])
    """
    return concept_directions(dictionary) @ _checked(dictionary, weight).T


@dataclass(frozen=True)
class StrengthCurve:
    """What a classifier says while one concept grows.

    Attributes:
        strengths: `[S]`, the codes that the concept was given.
        logits: `[S, N, C]`.
    """

    strengths: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """`[S, N, C]`: the softmax over classes, or the logistic function where there is one logit."""
        return torch.sigmoid(self.logits) if self.logits.shape[2] == 1 else self.logits.softmax(2)


@torch.no_grad()
def strength_curve(
    dictionary: Dictionary, weight: Tensor, bias: Tensor | float, x: Tensor, latent: int, strengths: Sequence[float]
) -> StrengthCurve:
    """The classifier's answers for embeddings in which one concept is given each of some strengths.

    `logit(s) = <w, x> + b + (s - z_c) <w, d_c>`: MSAE's bias analysis (arXiv 2502.20578), with all that the
    dictionary does not explain kept in the embedding.

    Args:
        dictionary: of the embeddings that the classifier reads.
        weight: `[C, d]`; bias: `[C]` or a number.
        x: embeddings `[N, d]`.
        latent: the concept.
        strengths: its codes to try.

    Returns:
        A `StrengthCurve`.

    Raises:
        ValueError: for a latent that does not exist, a weight of another width, or no fixed directions.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae, x = ReLUDictionary(4, 8), torch.randn(5, 4)
        >>> strength_curve(sae, torch.randn(1, 4), 0.0, x, 3, [0.0, 1.0, 2.0]).probabilities.shape
        torch.Size([3, 5, 1])
    """
    check_latents(dictionary, [latent])
    weight, x = _checked(dictionary, weight), x.to(dictionary.W_dec)
    tried = torch.as_tensor(strengths).to(dictionary.W_dec)
    change = tried[:, None] - dictionary.encode_sparse(x).columns([latent])[:, 0]
    effect = concept_directions(dictionary)[latent] @ weight.T
    return StrengthCurve(tried, x @ weight.T + bias + change[..., None] * effect)


@dataclass(frozen=True)
class ConceptGap:
    """Why a classifier's mean logits differ between two groups of embeddings.

    Attributes:
        total: `[C]`, mean logits of the first group less those of the second.
        concepts: `[n_latents, C]`, each concept's part of it.
        rest: `[C]`, the part of what the dictionary does not explain; `total = concepts.sum(0) + rest`.
    """

    total: Tensor
    concepts: Tensor
    rest: Tensor

    def largest(self, label: int = 0, n: int = 10) -> list[tuple[int, float]]:
        """The `n` latents of the largest parts by magnitude in the gap of a class, with their parts."""
        parts = self.concepts[:, label]
        return [(int(i), parts[i].item()) for i in parts.abs().topk(min(n, len(parts))).indices]


@torch.no_grad()
def concept_gap(dictionary: Dictionary, weight: Tensor, first: Tensor, second: Tensor) -> ConceptGap:
    """Split the difference of a classifier's mean logits between two groups into parts of concepts.

    `mean_A <w, x> - mean_B <w, x> = sum_i (mean_A z_i - mean_B z_i) <w, d_i> + <w, mean_A e - mean_B e>` with the errors
    `e = x - xhat`. It says which concepts a classifier goes by where groups should not matter to it.

    Args:
        dictionary: of the embeddings that the classifier reads.
        weight: `[C, d]`.
        first, second: embeddings `[N, d]` and `[M, d]` of the groups.

    Returns:
        A `ConceptGap`.

    Raises:
        ValueError: for an empty group, a weight of another width, or no fixed directions.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> gap = concept_gap(ReLUDictionary(4, 8), torch.randn(1, 4), torch.randn(9, 4), torch.randn(7, 4))
        >>> bool(torch.allclose(gap.total, gap.concepts.sum(0) + gap.rest, atol=1e-5))
        True
    """
    if len(first) == 0 or len(second) == 0:
        raise ValueError(f"The groups have {len(first)} and {len(second)} embeddings; give at least one of each.")
    weight, directions = _checked(dictionary, weight), concept_directions(dictionary)
    means, codes = [], []
    for x in (first, second):
        x = x.to(dictionary.W_dec)
        z = dictionary.encode_sparse(x)
        means.append(x.mean(0))
        codes.append(z.values.new_zeros(dictionary.n_latents).index_add(0, z.latents, z.values) / len(x))
    concepts = (codes[0] - codes[1])[:, None] * (directions @ weight.T)
    total = weight @ (means[0] - means[1])
    return ConceptGap(total, concepts, total - concepts.sum(0))
