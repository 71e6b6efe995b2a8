"""Samples and patches by what images and texts have in common: filters of data and of patches as in SAE-V."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlsae.concepts.cross_modal import IMAGE, NEITHER, TEXT, CrossModalWeights, SampleTokens

METHODS = ("cosine", "l0", "cooccurring_l0")
PATCH_METHODS = ("cosine", "l0", "l1", "cooccurring_l0")
OVER = ("cooccurring", "union", "tokens")


def score_samples(
    tokens: SampleTokens,
    weights: CrossModalWeights,
    method: str = "cosine",
    over: str = "cooccurring",
    threshold: float = 1.0,
) -> Tensor:
    """How much a sample's images and texts have in common.

    "cosine": `sum over k in K of omega_k`; "cooccurring_l0": `|K|`, both with `K` the latents above the threshold on at
    least one image token and one text token; "l0": the mean number of active latents a token, which knows nothing of pairs.

    Args:
        tokens: whole samples.
        weights: of `cross_modal_weights`.
        method: "cosine", "l0" or "cooccurring_l0".
        over: the latents of "cosine": "cooccurring"; "union", all above the threshold anywhere in the sample, which
            prefers pairs that do NOT belong together, since these hold more different concepts; or "tokens", the union
            with a latent counted once a token. The latter two are for comparison.
        threshold: of codes. 1 is the released code's and means inputs of norm sqrt(d) (`input_transform="sqrt_d"`).

    Returns:
        float64 `[samples]`, in the order of `tokens.samples`.

    Raises:
        ValueError: for an unknown method or set, weights of another dictionary, a sample without images or without texts
            where these are compared, or a threshold above every code.

    Example:
        >>> from vlsae.concepts import cross_modal_weights
        >>> from vlsae.dictionaries.base import Codes
        >>> codes = Codes.from_dense(torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
        >>> sides, samples = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> tokens = SampleTokens(codes, torch.ones(4, 3), sides, samples)
        >>> weights = cross_modal_weights([tokens], 2, top_tokens=2, pairs=1, min_each=1)
        >>> score_samples(tokens, weights).round(decimals=3).tolist()
        [1.0, 0.0]

    As in Lou et al. 2025 (arXiv 2502.17514); the set of co-occurring latents as in the released code.
    """
    _require("method", method, METHODS)
    _require("over", over, OVER)
    if method != "cosine" and over != "cooccurring":
        raise ValueError(f"over={over!r} has a meaning for method='cosine' only, not {method!r}; leave it out.")
    _require_fit(tokens, weights)
    samples, owner = tokens.sample.unique(return_inverse=True)
    if method == "l0":
        return _mean_l0(tokens, owner, len(samples))
    owners, latents = _latents_of_samples(tokens, owner.numpy(), over, threshold)
    value = weights.omega.numpy()[latents] if method == "cosine" else None
    return torch.from_numpy(np.bincount(owners, value, minlength=len(samples)).astype(np.float64))


def _require(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(known)}.")


def _require_fit(tokens: SampleTokens, weights: CrossModalWeights) -> None:
    if tokens.codes.n_latents != len(weights.omega):
        raise ValueError(
            f"Codes have {tokens.codes.n_latents} latents, but there are {len(weights.omega)} weights; take both from one "
            "dictionary."
        )


def _require_pairs(tokens: SampleTokens) -> None:
    """Refuse samples of which one side is missing."""
    for side, name in ((IMAGE, "image"), (TEXT, "text")):
        lacks = set(tokens.samples.tolist()) - set(tokens.sample[tokens.modality == side].tolist())
        if lacks:
            raise ValueError(
                f"{len(lacks)} samples have no {name} token, such as sample {min(lacks)}, so nothing can co-occur; leave "
                "them out, or give whole samples in one batch."
            )


def _mean_l0(tokens: SampleTokens, owner: Tensor, n_samples: int) -> Tensor:
    """Active latents a token, `[samples]`; NaN for samples of no token with a modality."""
    counts = tokens.modality != NEITHER
    active = torch.bincount(tokens.codes.rows.cpu()[tokens.codes.values.cpu() != 0], minlength=tokens.codes.n)
    of = owner[counts]
    total = torch.bincount(of, active[counts].double(), minlength=n_samples)
    return total / torch.bincount(of, minlength=n_samples)


def _strong(tokens: SampleTokens, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and latents of the codes above the threshold, of tokens with a modality."""
    rows, latents, values = (
        part.detach().cpu() for part in (tokens.codes.rows, tokens.codes.latents, tokens.codes.values)
    )
    if len(values) and not (values > threshold).any():
        raise ValueError(
            f"No code is above threshold={threshold}; the largest is {float(values.max()):.3g}. The released code's 1 is for "
            "inputs of norm sqrt(d): train with input_transform='sqrt_d', or lower the threshold."
        )
    chosen = (values > threshold) & (tokens.modality[rows] != NEITHER)
    return rows[chosen].numpy(), latents[chosen].numpy()


def _latents_of_samples(
    tokens: SampleTokens, owner: np.ndarray, over: str, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sample (its place in the order) and latent of everything that a sample's score sums over."""
    rows, latents = _strong(tokens, threshold)
    m = tokens.codes.n_latents
    keys, side = owner[rows] * m + latents, tokens.modality.numpy()[rows]
    if over == "cooccurring":
        _require_pairs(tokens)
        keys = np.intersect1d(keys[side == IMAGE], keys[side == TEXT])
    elif over == "union":
        keys = np.unique(keys)
    return keys // m, keys % m


def keep_best(scores: Tensor, share: float) -> Tensor:
    """The samples with the highest scores: `round(share N)` of them, at least one.

    Args:
        scores: `[N]`, no NaN; equal scores keep the lower place.
        share: above 0, at most 1; the paper keeps .2 to .8.

    Returns:
        int64 places, rising.

    Raises:
        ValueError: for scores of another shape or NaN, or a share out of range.

    Example:
        >>> keep_best(torch.tensor([0.1, 0.9, 0.5, 0.9]), 0.5).tolist()
        [1, 3]

    As in Lou et al. 2025 (arXiv 2502.17514).
    """
    scores = torch.as_tensor(scores)
    if scores.ndim != 1 or not len(scores) or scores.isnan().any():
        raise ValueError(f"Scores have shape {tuple(scores.shape)}, or hold NaN; give one number a sample, [N].")
    return scores.argsort(descending=True, stable=True)[: _count(share, len(scores))].sort().values


def _count(share: float, n: int) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"A share of {share} was asked for; give a number above 0, at most 1.")
    return max(1, round(share * n))


def score_patches(
    tokens: SampleTokens,
    weights: CrossModalWeights,
    grid: tuple[int, int],
    method: str = "cosine",
    *,
    cells: Tensor | None = None,
    threshold: float = 1.0,
) -> Tensor:
    """How much of every patch is something that texts speak of: `score(p) = sum_k 1[a_k(p) != 0] omega_k`.

    Args:
        tokens: whole samples.
        weights: of `cross_modal_weights`.
        grid: rows and columns of patches, `(gh, gw)`.
        method: "cosine"; "l0", the number of active latents; "l1", the sum of their activations; or "cooccurring_l0", the
            number of those that are above the threshold on a text token and an image token of the sample.
        cells: `[n]`, place of each image token on its sample's grid, row by row, -1 for none (class tokens, newlines).
            Tokens of one place are averaged, so that tiles of several resolutions make one map a sample. Where None, a
            sample's image tokens are whole grids by position, one map an image.
        threshold: of "cooccurring_l0", as for `score_samples`.

    Returns:
        float64 `[B, gh, gw]`, by sample and then by position.

    Raises:
        ValueError: for an unknown method, weights of another dictionary, image tokens that do not fill the grid, or as for
            `score_samples`.

    Example:
        >>> from vlsae.concepts import cross_modal_weights
        >>> from vlsae.dictionaries.base import Codes
        >>> codes = Codes.from_dense(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]))
        >>> tokens = SampleTokens(codes, torch.ones(3, 3), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]))
        >>> weights = cross_modal_weights([tokens], 2, top_tokens=2, pairs=1, min_each=1)
        >>> score_patches(tokens, weights, (1, 2)).round(decimals=3).tolist()
        [[[1.0, 0.0]]]

    As in Lou et al. 2025 (arXiv 2502.17514).
    """
    _require("method", method, PATCH_METHODS)
    _require_fit(tokens, weights)
    scores = _token_scores(tokens, weights, method, threshold)
    at, n_maps = _places(tokens, grid, cells)
    placed = at >= 0
    n_cells = n_maps * grid[0] * grid[1]
    hits = np.bincount(at[placed], minlength=n_cells)
    if (hits == 0).any():
        raise ValueError(
            f"{int((hits == 0).sum())} cells of {n_maps} grids of {grid[0]} x {grid[1]} have no image token; give the grid "
            "of the model and `cells` for every patch."
        )
    totals = np.bincount(at[placed], scores[placed], minlength=n_cells)
    return torch.from_numpy(totals / hits).view(n_maps, *grid)


def _token_scores(tokens: SampleTokens, weights: CrossModalWeights, method: str, threshold: float) -> np.ndarray:
    """The score of every token, `[n]`."""
    rows, latents, values = (
        part.detach().cpu() for part in (tokens.codes.rows, tokens.codes.latents, tokens.codes.values.double())
    )
    if method == "cosine":
        value = weights.omega[latents]
    elif method == "l1":
        value = values.abs()
    elif method == "l0":
        value = torch.ones_like(values)
    else:
        owner = tokens.sample.unique(return_inverse=True)[1].numpy()
        owners, common = _latents_of_samples(tokens, owner, "cooccurring", threshold)
        m = tokens.codes.n_latents
        value = torch.from_numpy(np.isin(owner[rows] * m + latents.numpy(), owners * m + common)).double()
    return torch.bincount(rows, value * (values != 0), minlength=tokens.codes.n).numpy()


def _places(tokens: SampleTokens, grid: tuple[int, int], cells: Tensor | None) -> tuple[np.ndarray, int]:
    """Where each token lies among the cells of all maps, -1 for nowhere, and the number of maps."""
    n_cells, image = grid[0] * grid[1], tokens.modality == IMAGE
    samples, owner, sizes = tokens.sample[image].unique(return_inverse=True, return_counts=True)
    at = torch.full((tokens.codes.n,), -1)
    if cells is not None:
        cells = torch.as_tensor(cells).cpu()
        if cells.shape != at.shape or cells.is_floating_point() or (cells >= n_cells).any():
            raise ValueError(
                f"cells has shape {tuple(cells.shape)} and type {cells.dtype}; give {tokens.codes.n} whole numbers below "
                f"{n_cells}, -1 for tokens without a place."
            )
        at[image] = torch.where(cells[image] >= 0, owner * n_cells + cells[image], -1)
        return at.numpy(), len(samples)
    if not len(sizes) or (sizes % n_cells).any():
        wrong = f"sample {int(samples[(sizes % n_cells).argmax()])} has {int(sizes[(sizes % n_cells).argmax()])}"
        raise ValueError(
            f"A grid of {grid[0]} x {grid[1]} needs {n_cells} image tokens an image, but "
            f"{wrong if len(sizes) else 'there are none'}; give modality -1 to class tokens and newlines, or `cells`."
        )
    order = np.lexsort((tokens.position[image].numpy(), owner.numpy()))
    at[image.nonzero()[:, 0][torch.from_numpy(order)]] = torch.arange(len(order))
    return at.numpy(), len(order) // n_cells


def keep_patches(image: Tensor, scores: Tensor, q: float, fill: float = 0.0) -> Tensor:
    """The image with its best patches alone: `round(q gh gw)` of them, at least one; all others get one value.

    Args:
        image: pixels as the model takes them, `[B, C, H, W]` or `[C, H, W]`.
        scores: `[B, gh, gw]` or `[gh, gw]`, no NaN; equal scores keep the earlier patch.
        q: share of the patches to keep, above 0, at most 1; the paper keeps .25, .5 and .75.
        fill: of the others; 0 is the mean colour behind CLIP's preprocessing.

    Returns:
        As `image`.

    Raises:
        ValueError: for shapes that do not fit, NaN, or a share out of range.

    Example:
        >>> keep_patches(torch.ones(1, 2, 4), torch.tensor([[0.2, 0.7]]), 0.5)[0].tolist()
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]

    As in Lou et al. 2025 (arXiv 2502.17514).
    """
    fits = image.ndim in (3, 4) and scores.shape[:-2] == image.shape[:-3] and scores.ndim == image.ndim - 1
    if not fits or any(side % cells for side, cells in zip(image.shape[-2:], scores.shape[-2:], strict=True)):
        raise ValueError(
            f"Images {tuple(image.shape)} and scores {tuple(scores.shape)} do not fit; give [B, C, H, W] and [B, gh, gw], "
            "or [C, H, W] and [gh, gw], with H and W multiples of the grid."
        )
    if scores.isnan().any():
        raise ValueError("Patch scores hold NaN, so that no order is right; check the tokens they are of.")
    flat = scores.flatten(-2)
    best = flat.argsort(dim=-1, descending=True, stable=True)[..., : _count(q, flat.shape[-1])]
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, best, True).view(scores.shape).to(image.device)
    for axis in (-2, -1):
        kept = kept.repeat_interleave(image.shape[axis] // scores.shape[axis], axis)
    return torch.where(kept.unsqueeze(-3), image, torch.as_tensor(fill, dtype=image.dtype, device=image.device))
