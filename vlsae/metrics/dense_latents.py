"""Latents that fire often: how often, whether two are the halves of one direction, and what remains without them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.metrics.result import Metric

DENSE = 0.1  # share of tokens from which on the paper calls a latent dense
ANTIPODAL = 0.9
BLOCK = 1024  # latents compared with all others at a time
REFERENCE = "arXiv 2506.15679"


def density(codes: Tensor | Codes) -> Tensor:
    """Share of vectors on which each latent is active, `density_i = mean_n 1[z_ni != 0]` (arXiv 2506.15679).

    Args:
        codes: `[N, n_latents]`, or `Codes` of N vectors. Of `LatentStatistics`, take `token_count / n_tokens`.

    Returns:
        `[n_latents]`, float64.

    Raises:
        ValueError: for no vectors.

    Example:
        >>> density(torch.tensor([[0.0, 2.0], [0.0, -1.0]])).tolist()
        [0.0, 1.0]
    """
    n, count = (
        (codes.n, torch.bincount(codes.latents[codes.values != 0], minlength=codes.n_latents))
        if isinstance(codes, Codes)
        else (len(codes), (codes != 0).sum(0))
    )
    if n == 0:
        raise ValueError("There are no codes; the density of a latent needs at least one vector.")
    return count.double() / n


@dataclass(frozen=True)
class Antipodality:
    """How nearly each latent has an opposite.

    Attributes:
        score: `[n_latents]`, 0 to 1: the product of both cosines with `partner`; 0 where no latent is opposite in both.
        partner: `[n_latents]`, the latent of the largest product; -1 where there is none.
        encoder_cosine, decoder_cosine: `[n_latents]`, with the partner; 0 where there is none.
    """

    score: Tensor
    partner: Tensor
    encoder_cosine: Tensor
    decoder_cosine: Tensor

    def pairs(self, threshold: float = ANTIPODAL) -> list[tuple[int, int]]:
        """Latents that are each other's partner with a score above `threshold`, the lower number first."""
        found = (self.score > threshold).nonzero()[:, 0].tolist()
        return [(i, j) for i in found if i < (j := int(self.partner[i])) and int(self.partner[j]) == i]


@torch.no_grad()
def antipodality(dictionary: Dictionary) -> Antipodality:
    """The best opposite of each latent, `s_i = max_j cos(W_enc_i, W_enc_j) cos(W_dec_i, W_dec_j)` (2506.15679).

    Only among latents of which both cosines are negative: the paper's maximum over all `j` also gives 1 to a latent and
    its copy. Such a pair reads and writes one direction, `relu(a) - relu(-a) = a`.

    Args:
        dictionary: with a linear encoder `W_enc` and atoms.

    Returns:
        An `Antipodality`.

    Raises:
        ValueError: for a family without a linear encoder.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae = ReLUDictionary(2, 3)
        >>> for weight in (sae.W_dec.data, sae.W_enc.data.T):
        ...     _ = weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]))
        >>> found = antipodality(sae)
        >>> found.score.tolist(), found.pairs()
        ([1.0, 0.0, 1.0], [(0, 2)])
    """
    W_enc = getattr(dictionary, "W_enc", None)
    if W_enc is None or W_enc.shape != (dictionary.d, dictionary.n_latents):
        raise ValueError(f"{dictionary.family!r} has no linear encoder W_enc to compare; use a family that has one.")
    reads, writes = F.normalize(W_enc.detach().T.float(), dim=1), F.normalize(dictionary.atoms.float(), dim=1)
    score, partner, read, wrote = [], [], [], []
    for rows in torch.arange(dictionary.n_latents).split(BLOCK):
        a, b = reads[rows] @ reads.T, writes[rows] @ writes.T
        best = torch.where((a < 0) & (b < 0), a * b, 0.0).max(1)  # never a latent itself, whose cosines are positive
        there = best.values > 0
        score.append(best.values)
        partner.append(torch.where(there, best.indices, -1))
        read.append(torch.where(there, a.gather(1, best.indices[:, None])[:, 0], 0.0))
        wrote.append(torch.where(there, b.gather(1, best.indices[:, None])[:, 0], 0.0))
    return Antipodality(*(torch.cat(parts).cpu() for parts in (score, partner, read, wrote)))


def ablate_subspace(x: Tensor, directions: Tensor) -> Tensor:
    """Activations without their part in the span of some directions, `x - x Q Q^T` with an orthonormal basis `Q` of it.

    Train a dictionary on what is left: latents that were dense because of the span are not found again, which is how Sun
    et al. 2025 (arXiv 2506.15679) tell signals from artefacts of training.

    Args:
        x: `[..., d]`; directions: `[m, d]`, of any length and not necessarily independent.

    Returns:
        As `x`.

    Raises:
        ValueError: for another width, or no direction but 0.

    Example:
        >>> ablate_subspace(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])).tolist()
        [[0.0, 4.0]]
    """
    if directions.ndim != 2 or directions.shape[1] != x.shape[-1] or not (directions != 0).any():
        raise ValueError(
            f"Directions are {list(directions.shape)}; expected [m, {x.shape[-1]}] for these activations, not all 0."
        )
    _, values, basis = torch.linalg.svd(directions.detach().to(x).double(), full_matrices=False)
    basis = basis[values > 1e-6 * values.max()]
    return x - ((x.double() @ basis.T) @ basis).to(x.dtype)


@torch.no_grad()
def dense_latents(dictionary: Dictionary, codes: Tensor | Codes, threshold: float = DENSE) -> dict[str, Metric]:
    """How many latents are dense, and how many of these are halves of a pair.

    Args:
        dictionary: with a linear encoder.
        codes: its codes of some tokens, `[N, n_latents]` or `Codes`.
        threshold: density above which a latent is dense; the paper looks at .1 to .5.

    Returns:
        Metrics by name: `dense` (share of latents), `dense_codes` (share of active codes that are theirs) and
        `dense_antipodal` (share of dense latents whose antipodality exceeds .9; NaN without any).

    Raises:
        ValueError: for codes of another dictionary, or a family without a linear encoder.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> scores = dense_latents(sae := ReLUDictionary(4, 8), sae.encode(torch.randn(50, 4)))
        >>> sorted(scores)
        ['dense', 'dense_antipodal', 'dense_codes']
    """
    often = density(codes).cpu()
    if len(often) != dictionary.n_latents:
        raise ValueError(f"Codes have {len(often)} latents; expected the {dictionary.n_latents} of the dictionary.")
    n = codes.n if isinstance(codes, Codes) else len(codes)
    dense = often > threshold
    opposite = antipodality(dictionary).score > ANTIPODAL
    share = opposite[dense].double().mean().item()
    own = (often[dense].sum() / often.sum().clamp_min(1e-300)).item()
    product = (
        f"share of dense latents with max_j cos(W_enc_i, W_enc_j) cos(W_dec_i, W_dec_j) > {ANTIPODAL}, both negative"
    )
    found = {
        "dense": (dense.double().mean().item(), f"share of latents active on more than {threshold:.0%} of tokens"),
        "dense_codes": (own, "share of active codes that belong to dense latents"),
        "dense_antipodal": (share, product),
    }
    return {
        name: Metric(name, value, n, definition, REFERENCE, higher_is_better=None)
        for name, (value, definition) in found.items()
    }
