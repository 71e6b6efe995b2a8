"""Whether what a latent marks in images is what it marks in texts: SAE-V's cross-modal weights, over any token stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.concepts import statistics_kernels as kernels
from vlsae.dictionaries.base import Codes, Dictionary

IMAGE, TEXT, NEITHER = 0, 1, -1  # as in TwoModalities; NEITHER for start marks, newlines, padding
BLOCK = 4096  # latents whose pairs are gathered at a time
SLACK = 4096  # hidden states kept beyond twice the needed ones before they are sorted out


@dataclass(frozen=True)
class SampleTokens:
    """Tokens of samples, in any order and number: a sample is whatever belongs together, such as a picture and its caption.

    Args:
        codes: of `n` tokens; SAE-V keeps the 50 largest a token (`strongest_codes`).
        hidden: `[n, d]`, finite, the states whose cosines decide.
        modality: `[n]`, 0 for images, 1 for texts, -1 for tokens of neither, which nothing looks at.
        sample: `[n]`, numbers >= 0 of the sample; a sample may have several images, and any number of tokens.
        position: `[n]`, number of the token in its sample, >= 0; by order in this batch where None. Needed only where a
            modality of one sample is spread over batches.

    Raises:
        ValueError: for shapes that do not fit, NaN or infinite values, or unknown modalities.

    Example:
        >>> codes = Codes.from_dense(torch.eye(3))
        >>> tokens = SampleTokens(codes, torch.eye(3), torch.tensor([0, 1, 1]), torch.tensor([7, 7, 9]))
        >>> tokens.position.tolist(), tokens.samples.tolist()
        ([0, 1, 0], [7, 9])

    As in Lou et al. 2025 (arXiv 2502.17514).
    """

    codes: Codes
    hidden: Tensor
    modality: Tensor
    sample: Tensor
    position: Tensor | None = None

    def __post_init__(self) -> None:
        if self.hidden.ndim != 2:
            raise ValueError(f"Hidden states have shape {tuple(self.hidden.shape)}; give one row a token, [n, d].")
        for name in ("modality", "sample", "position"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _numbers(name, value, self.codes.n))
        if len(self.hidden) != self.codes.n:
            raise ValueError(f"{self.codes.n} tokens have codes but {len(self.hidden)} have hidden states; give both.")
        if not torch.isfinite(self.hidden).all() or not torch.isfinite(self.codes.values).all():
            raise ValueError(
                "Hidden states or codes hold NaN or infinite values, so cosines would be NaN; check the model, or run it "
                "in float32."
            )
        unknown = self.modality[(self.modality < NEITHER) | (self.modality > TEXT)]
        if len(unknown):
            raise ValueError(f"Modality {int(unknown[0])} is unknown; use 0 (image), 1 (text) or -1 (neither).")
        if self.position is None:
            object.__setattr__(self, "position", _order_within(self.sample))

    @property
    def samples(self) -> Tensor:
        """The distinct sample numbers, rising: the order in which scores come."""
        return self.sample.unique()

    @classmethod
    @torch.no_grad()
    def encode(
        cls, dictionary: Dictionary, hidden: Tensor, modality: Tensor, sample: Tensor, position=None, top: int = 50
    ) -> SampleTokens:
        """The same from hidden states `[n, d]` that a dictionary reads, with the `top` largest codes a token."""
        codes = dictionary.encode_sparse(hidden.to(dictionary.W_dec.device))
        return cls(strongest_codes(codes, top), hidden, modality, sample, position)


def _numbers(name: str, value, n: int) -> Tensor:
    """A list of whole numbers, one a token, on the processor."""
    value = torch.as_tensor(value).cpu()
    if value.shape != (n,) or value.is_floating_point():
        raise ValueError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}; give one whole number for each of the {n} tokens."
        )
    if name != "modality" and len(value) and value.min() < 0:
        raise ValueError(f"{name} holds {int(value.min())}; give numbers >= 0.")
    return value.long()


def _order_within(sample: Tensor) -> Tensor:
    """How many tokens of the same sample come before each token."""
    order = sample.argsort(stable=True)
    _, sizes = sample[order].unique_consecutive(return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.empty_like(sample).scatter_(0, order, torch.arange(len(sample)) - starts)


def strongest_codes(codes: Codes, top: int = 50) -> Codes:
    """The `top` largest codes of every row; equal ones keep the lower latent.

    Args:
        codes: of `n` rows.
        top: codes kept a row, >= 1.

    Returns:
        `Codes` of the same shape; the same object where no row has more.

    Raises:
        ValueError: for `top` below 1.

    Example:
        >>> strongest_codes(Codes.from_dense(torch.tensor([[1.0, 3.0, 2.0]])), top=2).latents.tolist()
        [1, 2]

    As in Lou et al. 2025 (arXiv 2502.17514), released code (50 a token).
    """
    if top < 1:
        raise ValueError(f"top={top} codes a token were asked for; give a number >= 1.")
    sizes = torch.bincount(codes.rows, minlength=codes.n)
    if not len(sizes) or int(sizes.max()) <= top:
        return codes
    order = codes.latents.argsort(stable=True)
    order = order[codes.values[order].argsort(stable=True, descending=True)]
    order = order[codes.rows[order].argsort(stable=True)]
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[codes.rows[order]]
    kept = order[rank < top]
    return Codes(codes.rows[kept], codes.latents[kept], codes.values[kept], codes.n, codes.n_latents)


@dataclass(frozen=True)
class CrossModalWeights:
    """What `cross_modal_weights` finds.

    Attributes:
        omega: float64 `[m]`, -1 to 1; 0 for every latent that is not "cross".
        kind: `[m]` of strings: "cross" (at least `min_each` tokens of each modality among its strongest), "image" or
            "text" (all of one), "undetermined" (both, but too few of one) or "dead".
        tokens: int64 `[m, top_tokens, 3]`, sample, position and modality of its strongest tokens; -1 pads.
        values: float32 `[m, top_tokens]`, their activations, falling.
    """

    omega: Tensor
    kind: np.ndarray
    tokens: np.ndarray
    values: np.ndarray


def cross_modal_weights(
    batches: Iterable[SampleTokens], n_latents: int, *, top_tokens: int = 30, pairs: int = 5, min_each: int = 5
) -> CrossModalWeights:
    """How alike a latent's strongest image tokens and text tokens are.

    `omega_k = mean over i in I_k, j in T_k of cos(h_i, h_j)`, with `I_k` and `T_k` the `pairs` strongest image and text
    tokens among the `top_tokens` strongest of all. One pass, whatever the split into batches and the order of samples:
    equal activations keep the lower (sample, position). Hidden states are kept of tokens that pairs may be made of alone.

    Args:
        batches: `SampleTokens`, every token once.
        n_latents: `m`, of the dictionary.
        top_tokens: strongest tokens kept a latent, 30 in the paper; only positive activations count. Where image tokens are
            many times more than text tokens, few latents have enough of both among 30.
        pairs: tokens of each modality that are compared, 1 to `min_each`.
        min_each: tokens of each modality that a latent must have, at most `top_tokens / 2`.

    Returns:
        A `CrossModalWeights`.

    Raises:
        ValueError: for impossible numbers, codes of another dictionary, a token given twice, or a stream without images or
            without texts.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> tokens = SampleTokens(Codes.from_dense(torch.ones(2, 1)), x, torch.tensor([0, 1]), torch.tensor([0, 0]))
        >>> weights = cross_modal_weights([tokens], 1, top_tokens=2, pairs=1, min_each=1)
        >>> round(weights.omega.item(), 4), weights.kind.tolist()
        (0.7071, ['cross'])

    As in Lou et al. 2025 (arXiv 2502.17514), and `cosimilarity.py` of the released code.
    """
    if not 1 <= pairs <= min_each or 2 * min_each > top_tokens:
        raise ValueError(
            f"pairs={pairs}, min_each={min_each} and top_tokens={top_tokens} do not fit; give 1 <= pairs <= min_each and "
            "2 min_each <= top_tokens."
        )
    best = _BestTokens(n_latents, top_tokens, pairs)
    for tokens in batches:
        best.add(tokens)
    best.require_both()
    kind = best.kinds(min_each)
    return CrossModalWeights(best.omega(kind == "cross"), kind, best.ids[..., :3].copy(), best.values)


class _BestTokens:
    """Every latent's strongest tokens so far, and the hidden states of those that pairs may be made of."""

    def __init__(self, n_latents: int, top_tokens: int, pairs: int):
        self.values = np.zeros((n_latents, top_tokens), np.float32)
        self.ids = np.full((n_latents, top_tokens, 4), -1, np.int64)  # sample, position, modality, place in the pool
        self.pairs = pairs
        self.seen = np.zeros(2, np.int64)
        self.pool: list[Tensor] = []
        self.pool_size = self.needed = 0

    def add(self, tokens: SampleTokens) -> None:
        """Let the tokens of a batch into the lists."""
        codes, modality = tokens.codes, tokens.modality.numpy()
        if codes.n_latents != len(self.values):
            raise ValueError(
                f"A batch has codes of {codes.n_latents} latents, but {len(self.values)} were announced; give the "
                "n_latents of the dictionary."
            )
        self.seen += [(modality == side).sum() for side in (IMAGE, TEXT)]
        rows, latents, values = (
            part.cpu().numpy() for part in (codes.rows, codes.latents, codes.values.detach().float())
        )
        may_enter = (values >= self.values[latents, -1]) & (modality[rows] != NEITHER) & (values > 0)
        rows, latents, values = rows[may_enter], latents[may_enter], values[may_enter]
        used, place = np.unique(rows, return_inverse=True)
        numbers = [part.numpy()[rows] for part in (tokens.sample, tokens.position)]
        ids = np.stack([*numbers, modality[rows], place + self.pool_size], 1)
        self.pool.append(tokens.hidden.detach()[torch.from_numpy(used).to(tokens.hidden.device)].float().cpu())
        self.pool_size += len(used)
        kernels.keep_best(self.values, self.ids, latents, values, ids)
        if self.pool_size > 2 * self.needed + SLACK:
            self._sort_out()

    def _first(self, modality: int) -> np.ndarray:
        """Entries among the first `pairs` of a modality: one that has left these can never return."""
        of_it = self.ids[..., 2] == modality
        return of_it & (of_it.cumsum(1) <= self.pairs)

    def _sort_out(self) -> None:
        """Drop the hidden states that no list needs."""
        wanted = self._first(IMAGE) | self._first(TEXT)
        places, new = np.unique(self.ids[wanted][:, 3], return_inverse=True)
        self.ids[..., 3][wanted] = new
        self.ids[..., 3][~wanted] = -1
        self.pool = [torch.cat(self.pool)[torch.from_numpy(places)]]
        self.pool_size = self.needed = len(places)

    def require_both(self) -> None:
        """Refuse a stream of one modality, and tokens that came twice."""
        if not self.seen.all():
            raise ValueError(
                f"The stream has {self.seen[IMAGE]} image and {self.seen[TEXT]} text tokens; give samples of both, and "
                "modality 0 for images and 1 for texts."
            )
        same = (self.ids[:, 1:, :3] == self.ids[:, :-1, :3]).all(-1) & (self.ids[:, 1:, 0] >= 0)
        if same.any():
            latent, at = (int(i[0]) for i in same.nonzero())
            sample, position, _ = self.ids[latent, at, :3].tolist()
            raise ValueError(
                f"Token {position} of sample {sample} came twice; number samples across batches, and give `position` where "
                "a sample's tokens are spread over batches."
            )

    def kinds(self, min_each: int) -> np.ndarray:
        """What every latent is, by the modalities in its list."""
        images, texts = ((self.ids[..., 2] == side).sum(1) for side in (IMAGE, TEXT))
        both = (images >= min_each) & (texts >= min_each)
        cases = [images + texts == 0, texts == 0, images == 0, both]
        return np.select(cases, ["dead", "image", "text", "cross"], "undetermined")

    def omega(self, cross: np.ndarray) -> Tensor:
        """The mean cosine of each cross-modal latent's pairs: the product of its two means of unit vectors."""
        omega, pool = torch.zeros(len(cross), dtype=torch.float64), torch.cat(self.pool)
        image, text = self._first(IMAGE), self._first(TEXT)
        for latents in np.array_split(cross.nonzero()[0], max(1, -(-int(cross.sum()) // BLOCK))):
            means = []
            for side in (image, text):
                places = self.ids[latents, :, 3][side[latents]].reshape(-1, self.pairs)
                means.append(F.normalize(pool[torch.from_numpy(places)].double(), dim=-1).mean(1))
            omega[torch.from_numpy(latents)] = (means[0] * means[1]).sum(1)
        return omega
