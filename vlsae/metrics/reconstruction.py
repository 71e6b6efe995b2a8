"""How much of the activations a dictionary keeps, and with how many latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vlsae.activations.reader import ActivationStore
from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.result import Metric


@torch.no_grad()
def reconstruction(
    dictionary: Dictionary,
    data: ActivationStore | Tensor,
    batch: int = 4096,
    target: ActivationStore | Tensor | None = None,
) -> dict[str, Metric]:
    """Explained variance, cosine, L0 and dead share over all tokens of the data.

    `ev_centred = 1 - sum ||x - xhat||^2 / sum ||x - mean||^2`, with the mean over all tokens; `l0` the mean number of
    positive codes a token; `dead` the share of latents that never fire on these data.

    Args:
        dictionary: any family.
        data: a store, or `[N, d]`.
        batch: tokens at a time.
        target: what a transcoder's output is held against, token by token in the order of `data`; `data` where None.

    Returns:
        Metrics by name: ev_centred, cosine, l0, dead.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> scores = reconstruction(TopKDictionary(8, 16, k=16), torch.randn(100, 8))
        >>> sorted(scores)
        ['cosine', 'dead', 'ev_centred', 'l0']
    """
    goal = data if target is None else target
    mean = goal.flatten(0, -2).cpu().double().mean(0) if isinstance(goal, Tensor) else goal.mean().double()
    error = spread = cosine = active = 0.0
    n = 0
    fired = torch.zeros(dictionary.n_latents, dtype=torch.bool)
    for x, y in zip(_batches(data, batch), _batches(goal, batch), strict=True):
        x, y = x.to(dictionary.W_dec), y.to(dictionary.W_dec)
        codes = dictionary.encode_sparse(x)
        xhat = dictionary.decode(codes, like=x)
        error += (y - xhat).double().square().sum().item()
        spread += (y.cpu().double() - mean).square().sum().item()
        cosine += torch.nn.functional.cosine_similarity(y, xhat, dim=-1).double().sum().item()
        active += len(codes.values)
        fired[codes.latents.cpu()] = True
        n += len(x)
    return {
        "ev_centred": Metric("ev_centred", 1 - error / spread, n, "1 - sum ||x - xhat||^2 / sum ||x - mean||^2"),
        "cosine": Metric("cosine", cosine / n, n, "mean over tokens of cos(x, xhat)"),
        "l0": Metric("l0", active / n, n, "mean number of non-zero codes a token", higher_is_better=None),
        "dead": Metric(
            "dead",
            1 - fired.float().mean().item(),
            n,
            "share of latents that never fire on these tokens",
            higher_is_better=False,
        ),
    }


def _batches(data: ActivationStore | Tensor, batch: int) -> Iterator[Tensor]:
    """The tokens of the data in their order, `[n, d]` at a time."""
    if isinstance(data, Tensor):
        yield from data.flatten(0, -2).split(batch)
    else:
        for _, x in data.batches(max(1, batch // data.n_tokens)):
            yield x.flatten(0, 1)
