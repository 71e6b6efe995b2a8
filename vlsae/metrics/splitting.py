"""Which latents together tell a concept: k-sparse probes, and where adding latents stops to help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlsae.metrics.linear_probe import check_labelled
from vlsae.splice.audits.path import l1_logistic

TAU = 0.03  # gain in F1 from which on a further latent is a split of the concept
REFERENCE = "arXiv 2409.14507"


@dataclass(frozen=True)
class SparseProbe:
    """A logistic regression on a few latents.

    Attributes:
        latents: their numbers, the largest weight of the L1 probe first.
        f1: on the rows held out.
        weight: `[k]` of the refitted regression, in the order of `latents`.
        bias: its intercept.
    """

    latents: tuple[int, ...]
    f1: float
    weight: Tensor
    bias: float


@dataclass(frozen=True)
class FeatureSplits:
    """The latents among which a concept is split.

    Attributes:
        latents: the main latents, one where the concept is not split.
        f1: of k-sparse probes with k = 1, 2, ..., as far as they were fitted.
    """

    latents: tuple[int, ...]
    f1: tuple[float, ...]


def k_sparse_probe(
    codes: Tensor, y: Tensor, k: int, *, l1: float = 0.01, held_out: float = 0.2, seed: int = 0
) -> SparseProbe:
    """The F1 of the best `k` latents: those with the largest signed weights of `min mean_n loss_n + l1 ||w||_1`, refitted.

    `F1 = 2 TP / (2 TP + FP + FN)` of a logistic regression with balanced classes on these latents (Chanin et al. 2024,
    arXiv 2409.14507, after Gurnee et al. 2023). Codes are divided by their root mean square where active, one number for
    all latents, so that `l1` does not depend on the units of activations; weights are those of the divided codes.

    Args:
        codes: `[n, n_latents]`, dense.
        y: bool `[n]`, where the concept is there; at least two rows of either kind.
        k: latents to use, 1 to `n_latents`.
        l1: penalty of the probe that ranks latents, above 0.
        held_out: share of either class that F1 is computed on, 0 to below 1; at 0, the rows it was fitted to.
        seed: of the split.

    Returns:
        A `SparseProbe`.

    Raises:
        ValueError: for NaN, labels of one class, other shapes, or impossible numbers.

    Example:
        >>> y = torch.tensor([True, False] * 20)
        >>> codes = torch.stack([torch.ones(40), y.float()], 1)
        >>> probe = k_sparse_probe(codes, y, 1)
        >>> probe.latents, probe.f1
        ((1,), 1.0)
    """
    data = _Split(codes, y, held_out, seed)
    if not 1 <= k <= codes.shape[1]:
        raise ValueError(f"k={k} must lie between 1 and the number of latents, {codes.shape[1]}.")
    return data.refit(data.ranked(l1)[0][:k])


def feature_splits(
    codes: Tensor,
    y: Tensor,
    tau: float = TAU,
    max_k: int = 15,
    *,
    l1: float = 0.01,
    held_out: float = 0.2,
    seed: int = 0,
) -> FeatureSplits:
    """The main latents of a concept: the first `k` ones, with the least `k` for which `F1(k + 1) - F1(k) <= tau`.

    Chanin et al. 2024 (arXiv 2409.14507). Only latents with a positive weight join. What takes over a large part of the
    concept counts as a split, and not as absorption: one latent that speaks for a share `s` of it in place of the first
    adds about `s / (2 - s)` to F1. Give `max_k=1` for the single best latent.

    Args:
        codes, y, l1, held_out, seed: as for `k_sparse_probe`.
        tau: least gain of a further latent, 0 or more.
        max_k: at most that many latents, 1 or more.

    Returns:
        `FeatureSplits`.

    Raises:
        ValueError: as `k_sparse_probe`, or for impossible `tau` and `max_k`.

    Example:
        >>> kind = torch.arange(90) % 3  # two latents for halves of one concept, and rows without it
        >>> codes = torch.stack([kind == 0, kind == 1, torch.ones(90)], 1).float()
        >>> sorted(feature_splits(codes, kind < 2).latents)
        [0, 1]
    """
    if tau < 0 or max_k < 1:
        raise ValueError(f"tau={tau} and max_k={max_k}: give tau of 0 or more, and max_k of 1 or more.")
    data = _Split(codes, y, held_out, seed)
    order, weights = data.ranked(l1)
    order = order[: max(1, int((weights > 0).sum()))][:max_k]
    f1 = [data.refit(order[:1]).f1]
    for k in range(2, len(order) + 1):
        f1.append(data.refit(order[:k]).f1)
        if f1[-1] - f1[-2] <= tau:
            return FeatureSplits(tuple(order[: k - 1].tolist()), tuple(f1))
    return FeatureSplits(tuple(order.tolist()), tuple(f1))


class _Split:
    """Codes and labels, to fit and to test."""

    def __init__(self, codes: Tensor, y: Tensor, held_out: float, seed: int):
        from sklearn.model_selection import train_test_split

        check_labelled(codes, y)
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out={held_out} must be at least 0 and below 1.")
        truth = y.cpu().numpy() == 1
        if min(truth.sum(), (~truth).sum()) < 2:
            raise ValueError(f"{truth.sum()} of {len(truth)} labels are positive; a probe needs two of either kind.")
        z = codes.detach().double().cpu().numpy()
        active = z[z != 0]
        z = z / (np.sqrt(np.mean(active**2)) if len(active) else 1.0)
        rows = np.arange(len(z))
        fit = test = rows
        if held_out:
            least = max(2, round(held_out * len(z)))  # one row of either kind on both sides
            fit, test = train_test_split(rows, test_size=least, stratify=truth, random_state=seed)
        self.z, self.y, self.seed = z[fit], truth[fit], seed
        self.own_z, self.own_y = z[test], truth[test]

    def ranked(self, l1: float) -> tuple[np.ndarray, np.ndarray]:
        """All latents by falling signed weight of the L1 probe, and the weights in that order."""
        if l1 <= 0:
            raise ValueError(f"l1={l1} must be above 0; without a penalty no weight is exactly 0.")
        model = l1_logistic(1 / (l1 * len(self.z)), "liblinear", 1000, self.seed)
        weights = model.fit(self.z, self.y).coef_[0]
        order = np.argsort(-weights, kind="stable")
        return order, weights[order]

    def refit(self, latents: np.ndarray) -> SparseProbe:
        """A balanced logistic regression on these latents alone."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score

        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(self.z[:, latents], self.y)
        f1 = f1_score(self.own_y, model.predict(self.own_z[:, latents]), zero_division=0.0)
        weight = torch.from_numpy(model.coef_[0].copy())
        return SparseProbe(tuple(latents.tolist()), float(f1), weight, float(model.intercept_[0]))
