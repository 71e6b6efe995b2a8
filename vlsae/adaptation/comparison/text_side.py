"""What changed where texts changed: class embeddings in words, and latents' shares of a class's logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.latent_effects import written
from vlsae.splice.model import SpLiCE


@dataclass(frozen=True)
class ClassWords:
    """One class in words, before and after.

    Attributes:
        name: of the class.
        before, after: its heaviest words, heaviest first.
        cosine: between both class embeddings.
    """

    name: str
    before: list[str]
    after: list[str]
    cosine: float


def class_words(
    splice: SpLiCE, base: Tensor, adapted: Tensor, class_names: Sequence[str], n_words: int = 4
) -> list[ClassWords]:
    """Decompose the class embeddings of both models into words of a vocabulary (SpLiCE).

    Args:
        splice: a vocabulary in the base model's space.
        base, adapted: unit class embeddings, `[C, e]`, from `Backbone.classifier`.
        class_names: of the rows.
        n_words: the heaviest words that are named.
    """
    found = [splice.decompose(x.float().cpu()) for x in (base, adapted)]
    words = [[_heaviest(part, row, n_words) for row in range(len(class_names))] for part in found]
    cosine = F.cosine_similarity(base.float(), adapted.float()).tolist()
    return [ClassWords(*row) for row in zip(class_names, *words, cosine, strict=True)]


def _heaviest(found, row: int, n: int) -> list[str]:
    weights = found.weights[row]
    order = (-weights.data).argsort()[:n]
    return [found.texts[weights.indices[i]] for i in order]


@dataclass(frozen=True)
class LogitShares:
    """A class's logit as a sum, `latents.sum(1) + error + bias`.

    Attributes:
        latents: `[N, n_latents]`, what each latent adds.
        error: `[N]`, what the dictionary does not explain adds; bias: what its decoder's bias and the head's add.
    """

    latents: Tensor
    error: Tensor
    bias: Tensor


@torch.no_grad()
def logit_shares(dictionary: Dictionary, x: Tensor, direction: Tensor, bias: float = 0.0) -> LogitShares:
    """Split linear logits into latents, error and bias, exactly.

    `<x, w> + c = sum_i z_i <d_i, w> + <x - xhat, w> + <b, w> + c`, for activations followed by nothing but `w` and `c`: unit
    embeddings (site "vision.pooled") under `w = scale t_c`, or tokens under a linear read-out.

    Args:
        dictionary: with one decoder and a transform of all tokens alike.
        x: activations, `[N, d]`.
        direction: `w`, `[d]`: a class embedding times the logit scale.
        bias: `c`.

    Raises:
        ValueError: for a dictionary whose latents do not write one vector each.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae, x, w = ReLUDictionary(4, 8), torch.randn(3, 4), torch.randn(4)
        >>> found = logit_shares(sae, x, w)
        >>> bool(torch.allclose(found.latents.sum(1) + found.error + found.bias, x @ w, atol=1e-5))
        True
    """
    z, w = dictionary.encode(x), direction.to(dictionary.W_dec)
    latents = z * (written(dictionary) @ w)
    xhat = dictionary.decode(z, like=x)
    start = dictionary.decode(torch.zeros_like(z[:1]), like=x[:1])[0] @ w
    return LogitShares(latents, (x.to(xhat) - xhat) @ w, (start + bias).expand(len(x)))
