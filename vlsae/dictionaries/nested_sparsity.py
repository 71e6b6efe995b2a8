"""Matryoshka over sparsity levels (MSAE): one code, trained to reconstruct at several k at once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace

FIRST_LEVEL = 64
START_NORM = 0.01  # of encoder columns


def doubling(n_latents: int, first: int = FIRST_LEVEL) -> list[int]:
    """64 (or another `first`), 128, 256, ... and `n_latents` itself; `n_latents` alone where it is not larger."""
    levels, k = [], first
    while k < n_latents:
        levels.append(k)
        k *= 2
    return [*levels, n_latents]


@DICTIONARIES.register("nested_sparsity")
class NestedSparsityMatryoshka(Dictionary):
    """Levels `z_i = ReLU(TopK_{k_i}((x - b_dec) W_enc + b_enc))` with nested supports (MSAE, arXiv 2502.20578).

    Training weighs the reconstruction errors of all levels (objective "nested_sparsity"). `encode` is the plain ReLU,
    so the number of active latents follows the input; `encode_at` cuts to the k largest, with any k chosen afterwards.
    The paper centres its inputs and brings them to norm `sqrt(d)`: train with `input_transform="centre_sqrt_d"`.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        ks: rising numbers of latents, each 1 to `n_latents`, one a level; 64, 128, ..., `n_latents` where empty. Only
            a last level of `n_latents` trains what `encode` computes.
        cut: keep only that many latents in `encode`, as `encode_at` does; all where 0. Training is the same.
        seed: of the initial weights.

    Raises:
        ValueError: for levels that do not rise or leave 1 to `n_latents`.

    Example:
        >>> sae = NestedSparsityMatryoshka(d=4, n_latents=8, ks=[2, 8])
        >>> x = torch.randn(5, 4)
        >>> int((sae.encode_at(x, 2) > 0).sum(-1).max()) <= 2
        True
    """

    family = "nested_sparsity"
    objectives = ("nested_sparsity",)
    dead_policy = "none"

    def __init__(self, d: int, n_latents: int, *, ks: Sequence[int] = (), cut: int = 0, seed: int = 0):
        super().__init__(d, n_latents, seed=seed)
        self.ks = [int(k) for k in ks] or doubling(n_latents)
        if self.ks != sorted(set(self.ks)) or self.ks[0] < 1 or self.ks[-1] > n_latents:
            raise ValueError(f"ks={self.ks} must rise strictly, from at least 1 to at most n_latents={n_latents}.")
        if not 0 <= cut <= n_latents:
            raise ValueError(f"cut={cut} must lie between 0 (all) and n_latents={n_latents}.")
        self.cut = cut

    @property
    def settings(self) -> dict[str, Any]:
        return {"ks": self.ks, "cut": self.cut}

    def _init_weights(self, generator: torch.Generator) -> None:
        """A short encoder, as released: all latents of a ReLU at full length would add up to far more than the input."""
        super()._init_weights(generator)
        with torch.no_grad():
            self.W_enc.mul_(START_NORM)

    def activate(self, pre: Tensor) -> Tensor:
        z = torch.relu(pre)
        return self._largest(z, self.cut) if self.cut else z

    @staticmethod
    def _largest(z: Tensor, k: int) -> Tensor:
        values, order = z.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(z).scatter(-1, order, values)

    def encode_at(self, x: Tensor, k: int) -> Tensor:
        """Codes `[..., n_latents]` with only the `k` largest kept; every code of `encode` where `k` is `n_latents`.

        Raises:
            ValueError: for a `k` outside 1 to `n_latents`.
        """
        if not 1 <= k <= self.n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={self.n_latents}.")
        return self._largest(torch.relu(self.pre(self.transform(x.to(self.W_dec.dtype)))), k)

    def cut_to(self, k: int) -> NestedSparsityMatryoshka:
        """A copy of the dictionary whose `encode` keeps the `k` largest codes, as `encode_at` does.

        Raises:
            ValueError: for a `k` outside 1 to `n_latents`.
        """
        if not 1 <= k <= self.n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={self.n_latents}.")
        part = deepcopy(self)
        part.cut = k if k < self.n_latents else 0
        return part

    def sub_dictionary(self, level: int) -> NestedSparsityMatryoshka:
        """The dictionary at level `ks[level]`, with all of its latents: a copy that keeps that many codes.

        Raises:
            ValueError: for a level that does not exist.
        """
        if not 0 <= level < len(self.ks):
            raise ValueError(f"level={level} does not exist; there are {len(self.ks)}, counted from 0.")
        return self.cut_to(self.ks[level])

    def levels(self, pre: Tensor) -> list[Tensor]:
        """Codes `[..., n_latents]` of every level, cut from one ranking so that also ties are nested."""
        z = torch.relu(pre)
        cuts = [k for k in self.ks if k < self.n_latents]
        values, order = z.topk(max(cuts, default=1), dim=-1)
        codes = [torch.zeros_like(z).scatter(-1, order[..., :k], values[..., :k]) for k in cuts]
        return codes if len(cuts) == len(self.ks) else [*codes, z]

    def trace(self, x: Tensor) -> Trace:
        """The last level, with the reconstructions of all levels as `extras["levels"] [h, B, d]`."""
        pre = self.pre(x)
        codes = self.levels(pre)
        levels = torch.stack([self._decode(z) for z in codes])
        return Trace(pre, codes[-1], levels[-1], {"levels": levels})

    def constrain(self) -> None:
        self.move_norms_to_encoder()

    @torch.no_grad()
    def move_norms_to_encoder(self) -> None:
        """Unit atoms, each norm moved into the latent's encoder column and bias: `relu(s pre) (w / s) = relu(pre) w`.

        The reconstruction of `encode` stays. A level below `n_latents` may choose others than before: latents are
        ranked by what they add to the reconstruction from now on.
        """
        norms = self.W_dec.norm(dim=1)
        norms = torch.where(norms > 1e-12, norms, torch.ones_like(norms))
        self.W_dec.div_(norms[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)
