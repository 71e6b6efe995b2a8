"""Codebooks (Tamkin et al. 2023): every vector, or every head's part of it, as k of C discrete codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace
from vlsae.dictionaries.clusters import kmeans


@DICTIONARIES.register("group_codebook")
class GroupCodebook(Dictionary):
    """The `k` codes of largest cosine with each of `groups` slices of a vector; `z` is 1 (or `1 / k`) for them.

    Every slice has a codebook of its own of `n_latents / groups` codes; one group is the plain codebook. Arxiv
    2310.17230: the paper adds codes up, the released code takes their mean. `bottleneck` is the layer for finetuning
    a model around it: codes forward, the identity backward.

    Args:
        d: width of the activations.
        n_latents: codes over all groups.
        k: codes a group.
        groups: equal slices of a vector, such as heads; divides `d` and `n_latents`.
        reduce: "sum" or "mean" of the chosen codes.
        start: where training puts the codes first: "kmeans" of the data, or "normal".
        seed: of the initial codes.

    Attributes:
        codes: `[groups, n_latents / groups, d / groups]`.

    Raises:
        ValueError: for sizes that do not divide, an impossible `k`, or another `reduce` or `start`.

    Example:
        >>> book = GroupCodebook(d=4, n_latents=6, k=1, groups=2)
        >>> book.encode(torch.randn(5, 4)).sum(1).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """

    family = "group_codebook"
    objectives = ("commitment",)
    dead_policy = "none"
    unit_atoms = False
    homogeneous = False

    def __init__(
        self, d: int, n_latents: int, *, k: int, groups: int = 1, reduce: str = "sum", start: str = "kmeans",
        seed: int = 0,
    ):  # fmt: skip
        if groups < 1 or d % groups or n_latents % groups:
            raise ValueError(f"groups={groups} must divide d={d} and n_latents={n_latents}.")
        if not 1 <= k <= n_latents // groups:
            raise ValueError(f"k={k} must lie between 1 and a group's {n_latents // groups} codes.")
        if reduce not in ("sum", "mean") or start not in ("kmeans", "normal"):
            raise ValueError(f"reduce={reduce!r} is 'sum' or 'mean', start={start!r} is 'kmeans' or 'normal'.")
        self.k, self.groups, self.reduce, self.start, self.seed = k, groups, reduce, start, seed
        super().__init__(d, n_latents, seed=seed)

    def _init_weights(self, generator: torch.Generator) -> None:
        shape = self.groups, self.n_latents // self.groups, self.d // self.groups
        self.codes = nn.Parameter(torch.randn(*shape, generator=generator))
        self.register_buffer("b_dec", torch.zeros(self.d))

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "groups": self.groups, "reduce": self.reduce}

    @property
    def W_dec(self) -> Tensor:
        """Codes as atoms `[n_latents, d]`, zero outside their slice."""
        return self.codes[0] if self.groups == 1 else torch.block_diag(*self.codes)

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        if self.start == "kmeans":
            for g, part in enumerate(sample.chunk(self.groups, dim=-1)):
                self.codes[g].copy_(
                    kmeans(part.split(4096), self.codes.shape[1], self.seed + g) / self._weight / self.k
                )

    @property
    def _weight(self) -> float:
        return 1.0 if self.reduce == "sum" else 1 / self.k

    def pre(self, x: Tensor) -> Tensor:
        """Cosines of each slice with its codes, `[..., n_latents]`."""
        slices = F.normalize(x.unflatten(-1, (self.groups, -1)), dim=-1)
        return torch.einsum("...gd,gcd->...gc", slices, F.normalize(self.codes, dim=-1)).flatten(-2)

    def activate(self, pre: Tensor) -> Tensor:
        scores = pre.unflatten(-1, (self.groups, -1))
        chosen = scores.topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(scores).scatter(-1, chosen, self._weight).flatten(-2)

    def _decode(self, z: Tensor) -> Tensor:
        return torch.einsum("...gc,gcd->...gd", z.unflatten(-1, (self.groups, -1)), self.codes).flatten(-2)

    def trace(self, x: Tensor) -> Trace:
        with torch.no_grad():
            pre = self.pre(x)
            z = self.activate(pre)
        return Trace(pre, z, self._decode(z))

    def bottleneck(self, x: Tensor) -> Tensor:
        """The codes' sum in place of `x [..., d]`, with the identity as gradient towards `x` (straight through)."""
        xhat = self._decode(self.activate(self.pre(x.detach())))
        return xhat + (x - x.detach())

    def force(self, z: Tensor, codes: Sequence[int]) -> Tensor:
        """Codes `[..., n_latents]` with the given codes on, in place of what their groups held."""
        size, out = self.n_latents // self.groups, z.clone()
        for code in codes:
            out[..., code // size * size : (code // size + 1) * size] = 0
        out[..., list(codes)] = self._weight
        return out

    def encode_without(self, x: Tensor, codes: Sequence[int]) -> Tensor:
        """What `encode` gives when some codes are disabled: the next best take their places."""
        pre = self.pre(self.transform(x))
        pre[..., list(codes)] = -torch.inf
        return self.activate(pre)
