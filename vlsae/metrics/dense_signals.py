"""What dense latents of a vision model stand for: position, norm, foreground, principal axes, what no read-out sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.dictionaries.projection import principal_axes
from vlsae.metrics.dense_latents import DENSE, density
from vlsae.metrics.localisation import auroc

# above what a score explains a latent: |rho|, AUC, |cos| and share as in arXiv 2506.15679
SIGNAL, TRUTH, DIRECTION, NULL_SPACE = 0.4, 0.75, 0.75, 0.2


def patch_positions(rows: int, columns: int, n_images: int = 1) -> dict[str, Tensor]:
    """Where each patch of a grid lies: its row, its column, and its distance from the centre, `[n_images * patches]`.

    Args:
        rows, columns: of the grid, whose patches come row by row.
        n_images: images whose patches follow each other.

    Returns:
        "row", "column" and "radius", in patches.

    Example:
        >>> patch_positions(2, 3)["column"].tolist()
        [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    """
    row, column = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    radius = torch.hypot(row - (rows - 1) / 2, column - (columns - 1) / 2)
    return {name: v.flatten().repeat(n_images) for name, v in (("row", row), ("column", column), ("radius", radius))}


def principal_directions(x: Tensor, n: int = 1) -> Tensor:
    """The first `n` principal axes `[n, d]` of activations `[N, d]` around their mean, of unit norm.

    Args:
        x: `[N, d]`; n: how many, largest variance first.

    Returns:
        `[n, d]`, each up to its sign.

    Example:
        >>> principal_directions(torch.tensor([[0.0, 1.0], [0.0, 3.0]])).abs().tolist()
        [[0.0, 1.0]]
    """
    return principal_axes(x.detach())[:n].to(x.dtype)


def null_space_share(atoms: Tensor, projection: Tensor, bottom: int | None = None) -> Tensor:
    """Share of each atom's squared norm that a projection does not, or hardly, read, `||a U_0||^2 / ||a||^2`.

    `U_0` are the left singular vectors of the projection with singular value 0, or the last `bottom` of them
    (arXiv 2506.15679: the last ten of the unembedding). For CLIP the projection is `visual.proj`.

    Args:
        atoms: `[n, d]`; projection: `[d, e]`; bottom: how many singular vectors, the exact kernel where None.

    Returns:
        `[n]`, 0 to 1.

    Raises:
        ValueError: for another width, or a `bottom` that the projection does not have.

    Example:
        >>> null_space_share(torch.eye(3), torch.eye(3)[:, :2]).tolist()
        [0.0, 0.0, 1.0]
    """
    d = len(projection)
    if atoms.shape[1] != d or not 0 <= (bottom or 0) <= d:
        raise ValueError(f"Atoms are {list(atoms.shape)} with bottom={bottom}; expected [n, {d}] and 0 to {d}.")
    left, values, _ = torch.linalg.svd(projection.detach().double().cpu(), full_matrices=True)
    bottom = d - int((values > 1e-6 * values.max()).sum()) if bottom is None else bottom
    unit = F.normalize(atoms.detach().double().cpu(), dim=1)
    return (unit @ left[:, d - bottom :]).square().sum(1)


def rank_correlation(z: Tensor, signals: Tensor) -> Tensor:
    """Spearman's rho of every latent with every signal, ties at their mean rank.

    Args:
        z: `[N, n]`; signals: `[N, s]`.

    Returns:
        `[n, s]`; NaN where a latent or a signal is constant.

    Raises:
        ValueError: for unequal numbers of rows.

    Example:
        >>> rho = rank_correlation(torch.tensor([[1.0], [5.0], [9.0]]), torch.tensor([[3.0], [2.0], [1.0]]))
        >>> round(rho.item(), 6)
        -1.0
    """
    if len(z) != len(signals):
        raise ValueError(f"{len(z)} codes and {len(signals)} signals were given; give one row of signals a code.")

    def standardised(values: Tensor) -> np.ndarray:
        ranks = rankdata(values.detach().cpu().numpy(), axis=0)
        centred = ranks - ranks.mean(0)
        with np.errstate(invalid="ignore"):
            return centred / np.linalg.norm(centred, axis=0)

    return torch.from_numpy((standardised(z).T @ standardised(signals)).clip(-1, 1))


@dataclass(frozen=True)
class DenseLatent:
    """A dense latent with what it goes along with.

    Attributes:
        latent: its number; density: share of tokens it is active on.
        scores: by name: |rho| with a signal, the AUC of a truth (from .5, either way round), |cos| with a direction, and
            the share in the "null space".
        category: the name whose score passes its threshold by the largest part of what is possible; None: unexplained.
    """

    latent: int
    density: float
    scores: dict[str, float]
    category: str | None


def explain_dense(
    dictionary: Dictionary,
    codes: Tensor | Codes,
    *,
    signals: Mapping[str, Tensor] | None = None,
    truths: Mapping[str, Tensor] | None = None,
    directions: Mapping[str, Tensor] | None = None,
    projection: Tensor | None = None,
    threshold: float = DENSE,
) -> list[DenseLatent]:
    """Compare dense latents with what is known about tokens, after the taxonomy of arXiv 2506.15679

    A latent is explained by a signal at `|rho| > .4`, by a truth at `AUC > .75`, by a direction at `|cos| > .75`, and by
    the null space at a share above .2.

    Args:
        dictionary: whose atoms are compared with directions.
        codes: its codes of the tokens, `[N, n_latents]` or `Codes`.
        signals: a number a token, `[N]`, by name: `patch_positions`, the norm of the token, ...
        truths: a bool a token, `[N]`, by name: foreground, class token, register, ...
        directions: `[d]` by name: `principal_directions`, the difference of two modalities' means, ...
        projection: `[d, e]`, what the model reads out of these tokens.
        threshold: density from which a latent is looked at.

    Returns:
        The dense latents, densest first.

    Raises:
        ValueError: for signals or truths that are not one a token.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae, x = ReLUDictionary(4, 8), torch.randn(50, 4)
        >>> found = explain_dense(sae, sae.encode(x), signals={"norm": x.norm(dim=1)})
        >>> sorted(found[0].scores)
        ['norm']
    """
    often = density(codes).cpu()
    dense = [i for i in often.argsort(descending=True).tolist() if often[i] > threshold]
    z = (codes.columns(dense) if isinstance(codes, Codes) else codes[:, dense]).detach().cpu()
    atoms = F.normalize(dictionary.atoms[dense].float().cpu(), dim=1)
    signals, truths, directions = dict(signals or {}), dict(truths or {}), dict(directions or {})
    wrong = {name: list(v.shape) for name, v in {**signals, **truths}.items() if v.shape != (len(z),)}
    if wrong:
        raise ValueError(f"Signals or truths have shapes {wrong}; expected [{len(z)}], one value a token.")
    scores = {name: (rank_correlation(z, v[:, None])[:, 0].abs(), SIGNAL) for name, v in signals.items()}
    for name, truth in truths.items():
        area = torch.as_tensor(auroc(z.numpy(), truth.cpu().bool().numpy()))
        scores[name] = torch.maximum(area, 1 - area), TRUTH
    for name, direction in directions.items():
        scores[name] = (atoms @ F.normalize(direction.float().cpu(), dim=0)).abs(), DIRECTION
    if projection is not None:
        scores["null space"] = null_space_share(atoms, projection), NULL_SPACE
    return [
        DenseLatent(
            latent,
            float(often[latent]),
            {name: float(values[i]) for name, (values, _) in scores.items()},
            max(
                (name for name, (values, least) in scores.items() if values[i] > least),
                key=lambda name, i=i: float((scores[name][0][i] - scores[name][1]) / (1 - scores[name][1])),
                default=None,
            ),
        )
        for i, latent in enumerate(dense)
    ]
