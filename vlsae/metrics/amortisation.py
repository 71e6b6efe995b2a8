"""What an encoder loses against optimised codes with the same atoms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.shrinkage import refine
from vlsae.splice.inference import infer


@dataclass(frozen=True)
class AmortisationGap:
    """Errors `E||x - xhat||^2` behind the input transform, of the encoder and of optimised codes of no more latents.

    Attributes:
        encoder, optimised: the errors; l0: mean number of the encoder's active latents; n: vectors.
    """

    encoder: float
    optimised: float
    l0: float
    n: int

    @property
    def gap(self) -> float:
        """`encoder - optimised`, at least 0."""
        return self.encoder - self.optimised


@torch.no_grad()
def amortisation_gap(dictionary: Dictionary, x: Tensor) -> AmortisationGap:
    """How much error the encoder leaves that codes of as many latents, over the same atoms, would not.

    Each vector's optimised code is the better of two: orthogonal matching pursuit with as many latents as the encoder
    used, and the encoder's own support with its values fitted again. Arxiv 2411.13117 compares at equal sparsity alike.

    Args:
        dictionary: with non-negative codes.
        x: `[N, d]`.

    Raises:
        ValueError: for a family with codes of both signs.
    """
    z = dictionary.encode(x)
    refined = refine(dictionary, x)
    target = dictionary.transform(x.to(z)) - dictionary.b_dec

    def errors(codes: Tensor) -> Tensor:
        return (target - codes @ dictionary.atoms).double().square().sum(1)

    best, counts = torch.minimum(errors(refined), errors(z)), (z > 0).sum(1)
    for count in counts.unique().tolist():
        if count:
            rows = (counts == count).nonzero()[:, 0]
            codes = infer(dictionary, x[rows], "omp", k=count)
            found = (target[rows] - codes @ dictionary.atoms).double().square().sum(1)
            best[rows] = torch.minimum(best[rows], found)
    return AmortisationGap(float(errors(z).mean()), float(best.mean()), float(counts.float().mean()), len(x))


def worst_case_error(W_enc: Tensor, b_enc: Tensor, atoms: Tensor) -> tuple[float, float]:
    """The largest error of `ReLU((s D) W_enc + b_enc)` as an estimate of `s`, over `e_j`, `2 e_j` and `e_j + e_k`.

    Follows from the rank of `P = D W_enc`: an error `eps < 1` on this set makes every `|P_jk - delta_jk| <= 2 eps`, so
    `sqrt(N - M) <= ||P - I||_F <= 2 eps N`. No encoder of this form is exact on two active sources when `N > M`.

    Args:
        W_enc: `[M, N]`; b_enc: `[N]`; atoms: `D [N, M]`.

    Returns:
        The error, and the bound `sqrt(N - M) / (2 N)` below which no encoder gets (0 where `N <= M`).
    """
    N, M = atoms.shape
    P = (atoms @ W_enc).double()
    eye = torch.eye(N, dtype=torch.float64)
    pairs = torch.combinations(torch.arange(N), 2)
    sources = torch.cat([eye, 2 * eye, eye[pairs[:, 0]] + eye[pairs[:, 1]]])
    error = (torch.relu(sources @ P + b_enc.double()) - sources).abs().max()
    return float(error), max(0, N - M) ** 0.5 / (2 * N)
