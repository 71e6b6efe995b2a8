"""How atoms lie with respect to the data and to each other's use (the metrics of arXiv 2502.12892)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.metrics.matching import max_cosine


def out_of_data(atoms: Tensor, points: Tensor) -> float:
    """`1 - mean_i max_j cos(D_i, A_j)`: how far atoms `[n, d]` are from the nearest of the points `[N, d]`, 0 to 2.

    Example:
        >>> out_of_data(2 * torch.eye(3), torch.eye(3))
        0.0
    """
    return 1 - float(max_cosine(atoms, points)[0].mean())


def stable_rank(atoms: Tensor) -> float:
    """`||D||_F^2 / ||D||_2^2`, 1 to the rank: how many directions of the largest energy would fill the energy.

    Example:
        >>> round(stable_rank(torch.eye(4)), 4)
        4.0
    """
    values = torch.linalg.svdvals(atoms.detach().double())
    return float(values.square().sum() / values.max().square())


def connectivity(z: Tensor) -> float:
    """`1 - ||Z^T Z||_0 / n^2` of codes `[N, n]`: the share of ordered pairs of latents that are never active together.

    The paper prints the width where the number of latents must stand. A latent that fires is a pair with itself, so
    the largest value is 1 - 1/n where all fire.
    """
    active = (z != 0).double()
    return 1 - float((active.T @ active > 0).double().mean())


def negative_interference(z: Tensor, atoms: Tensor) -> float:
    """`||ReLU(-(Z^T Z) * (D D^T))||_2` of codes `[N, n]` and atoms `[n, d]`: 0 where co-active atoms never cancel.

    The norm is the spectral norm; it grows with the number of codes, so compare equal ones.
    """
    z, atoms = z.detach().double(), atoms.detach().double()
    return float(torch.linalg.matrix_norm(torch.relu(-(z.T @ z) * (atoms @ atoms.T)), 2))


def plausibility(atoms: Tensor, directions: Tensor) -> float:
    """`mean_c max_j cos(v_c, D_j)`: how well class directions `[C, d]`, such as text embeddings, occur as atoms."""
    return float(max_cosine(directions, atoms)[0].mean())


def soft_identifiability(z: Tensor, labels: Tensor) -> Tensor:
    """`max_{i, t} P((z_i > t) = y_c)` of each concept, `[C]`: the best accuracy of one latent and one threshold.

    Args:
        z: codes `[N, n]`; labels: bool `[N, C]`.

    Returns:
        Between `max(P(y), P(not y))`, reached by thresholds that let all or none through, and 1.

    Raises:
        ValueError: for unequal numbers of rows.
    """
    if len(z) != len(labels):
        raise ValueError(f"{len(z)} codes and {len(labels)} labels were given; give one row of labels a code.")
    ordered, order = z.detach().sort(dim=0, descending=True)
    # a threshold can only lie between two different values
    cut = F.pad((ordered[1:] != ordered[:-1]), (0, 0, 0, 1), value=True)
    best = []
    for truth in labels.bool().T:
        signed = 2.0 * truth[order].double() - 1  # letting one more through gains a hit or loses a rejection
        right = (~truth).sum() + torch.where(cut, signed.cumsum(0), -torch.inf).amax().clamp_min(0.0)
        best.append(right / len(z))
    return torch.stack(best)
