"""How often latents are active, alone and together: one streaming, mergeable pass that keeps only pairs that occur."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from vlsae.activations.reader import ActivationStore
from vlsae.dictionaries.base import Codes, Dictionary

UNITS = ("token", "image")
BATCH_TOKENS = 8192


class CoActivations:
    """Counts from which every conditional activation follows.

    Args:
        n_latents: of the dictionary.

    Attributes:
        n: samples seen (tokens or images).
        count: `[n_latents]` samples on which a latent is active.
        pairs: sparse `[n_latents, n_latents]`, samples on which both are; the diagonal is `count`.

    Example:
        >>> seen = CoActivations(2).add(Codes.from_dense(torch.tensor([[1.0, 2.0], [3.0, 0.0]])))
        >>> seen.n, seen.count.tolist(), seen.pairs.toarray().tolist()
        (2, [2, 1], [[2, 1], [1, 1]])
    """

    def __init__(self, n_latents: int):
        self.n = 0
        self.pairs = csr_matrix((n_latents, n_latents), dtype=np.int64)

    @property
    def n_latents(self) -> int:
        return self.pairs.shape[0]

    @property
    def count(self) -> np.ndarray:
        return self.pairs.diagonal()

    @property
    def density(self) -> np.ndarray:
        """Share of samples on which a latent is active, `[n_latents]`."""
        return self.count / max(1, self.n)

    def add(self, codes: Codes, tokens_a_sample: int = 1, threshold: float | np.ndarray = 0.0) -> CoActivations:
        """Add codes; each run of `tokens_a_sample` rows is one sample, in which a latent is active if it is in any row.

        Args:
            codes: of consecutive tokens.
            tokens_a_sample: 1 counts tokens, the tokens of an image count images.
            threshold: strengths `|z|` at or below it do not count; a number or `[n_latents]`.

        Returns:
            self.

        Raises:
            ValueError: for other latents, or rows that are no whole number of samples.
        """
        if codes.n_latents != self.n_latents or codes.n % tokens_a_sample:
            raise ValueError(
                f"Codes of {codes.n} rows and {codes.n_latents} latents do not fit counts of {self.n_latents} latents "
                f"with {tokens_a_sample} rows a sample; give whole samples of one dictionary."
            )
        samples, latents = codes.rows.cpu().numpy() // tokens_a_sample, codes.latents.cpu().numpy()
        limit = np.broadcast_to(np.asarray(threshold, np.float64), self.n_latents)
        active = codes.values.abs().double().cpu().numpy() > limit[latents]
        samples, latents, n = samples[active], latents[active], codes.n // tokens_a_sample
        present = csr_matrix((np.ones(len(samples), np.int64), (samples, latents)), shape=(n, self.n_latents))
        present.sum_duplicates()
        present.data[:] = 1
        self.pairs = self.pairs + (present.T @ present).tocsr()
        self.n += n
        return self

    def merge(self, other: CoActivations) -> CoActivations:
        """The counts of both parts together. Changes and returns self.

        Raises:
            ValueError: for counts of another number of latents.
        """
        if other.n_latents != self.n_latents:
            raise ValueError(
                f"Counts of {self.n_latents} and {other.n_latents} latents cannot be merged; count one dictionary."
            )
        self.n, self.pairs = self.n + other.n, self.pairs + other.pairs
        return self


@torch.no_grad()
def co_activations(
    dictionary: Dictionary,
    activations: ActivationStore | Tensor,
    *,
    unit: str = "token",
    threshold: float | np.ndarray = 0.0,
) -> CoActivations:
    """One pass of activations through a dictionary, counting which latents are active together.

    Args:
        dictionary: whose latents.
        activations: a store, or a tensor `[N, d]` or `[images, tokens, d]`.
        unit: "token" counts tokens, "image" images in which a latent is active on any token.
        threshold: strengths at or below it do not count; a number or `[n_latents]`.

    Returns:
        `CoActivations`.

    Raises:
        ValueError: for an unknown unit, another width, or images asked of a tensor that does not say which they are.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is unknown; use one of {', '.join(UNITS)}.")
    result = CoActivations(dictionary.n_latents)
    for x in _batches(activations, dictionary.d):
        if unit == "image" and x.ndim != 3:
            raise ValueError(
                f"unit='image' needs activations [images, tokens, d]; these are [{len(activations)}, {dictionary.d}]. Give "
                "the store, or tokens grouped by image, or unit='token'."
            )
        codes = dictionary.encode_sparse(x.flatten(0, -2).to(dictionary.W_dec.device))
        result.add(codes, x.shape[1] if unit == "image" else 1, threshold)
    return result


def _batches(activations: ActivationStore | Tensor, d: int) -> Iterator[Tensor]:
    """Parts of some 8,192 tokens; three-dimensional where images are known."""
    width = activations.d if isinstance(activations, ActivationStore) else activations.shape[-1]
    if width != d:
        raise ValueError(f"The dictionary reads width {d}, but the activations have {width}; give those of its site.")
    if isinstance(activations, ActivationStore):
        yield from (x for _, x in activations.batches(max(1, BATCH_TOKENS // activations.images(0, 1).shape[1])))
    else:
        tokens = activations[0].numel() // d if len(activations) else 1
        yield from activations.split(max(1, BATCH_TOKENS // tokens))
