"""Switch dictionaries (Mudide et al. 2024): a router sends every vector to one small expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace


@DICTIONARIES.register("switch")
class SwitchDictionary(Dictionary):
    """`z = p_e TopK(ReLU((x - b_dec) W_enc_e))` with the likeliest expert `e` of `p = softmax((x - b_router) router)`.

    Latents of expert `e` are `e n / experts` to `(e + 1) n / experts - 1`. Vectors are sorted by expert and each
    expert is one matrix product: the encoder costs `1 / experts` of a dense one. Arxiv 2410.08201, equations 3 to 6.

    Args:
        d: width of the activations.
        n_latents: number of atoms, over all experts.
        k: active latents a vector.
        experts: number of experts; divides `n_latents`.
        scale_by_prob: multiply codes by the router's probability, which is what trains the router.
        seed: of the initial weights.

    Raises:
        ValueError: where experts do not divide the latents, or hold fewer than `k`.

    Example:
        >>> sae = SwitchDictionary(d=4, n_latents=8, k=2, experts=4)
        >>> int((sae.encode(torch.randn(5, 4)) > 0).sum(1).max()) <= 2
        True
    """

    family = "switch"
    objectives = ("reconstruction", "balance")
    dead_policy = "none"

    def __init__(self, d: int, n_latents: int, *, k: int, experts: int = 2, scale_by_prob: bool = True, seed: int = 0):
        if experts < 1 or n_latents % experts:
            raise ValueError(f"experts={experts} must divide n_latents={n_latents}.")
        if not 1 <= k <= n_latents // experts:
            raise ValueError(f"k={k} must lie between 1 and an expert's {n_latents // experts} latents.")
        self.k, self.experts, self.scale_by_prob = k, experts, scale_by_prob
        super().__init__(d, n_latents, seed=seed)

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        del self.b_enc
        self.router = nn.Parameter((2 * torch.rand(self.d, self.experts, generator=generator) - 1) / self.d**0.5)
        self.b_router = nn.Parameter(torch.zeros(self.d))

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "experts": self.experts, "scale_by_prob": self.scale_by_prob}

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        """The router starts at the centre the decoder starts at."""
        self.b_router.copy_(self.b_dec)

    def route(self, x: Tensor) -> Tensor:
        """Probabilities of the experts, `[..., experts]`."""
        return ((x - self.b_router) @ self.router).softmax(-1)

    def _by_expert(self, x: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Rows of `x [B, d]` and latents of every expert that has any."""
        size = self.n_latents // self.experts
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=self.experts).tolist()
        for expert, rows in enumerate(order.split(counts)):
            if len(rows):
                yield rows, slice(expert * size, (expert + 1) * size)

    def _expert_codes(self, x: Tensor, probability: Tensor, latents: slice) -> tuple[Tensor, Tensor]:
        pre = (x - self.b_dec) @ self.W_enc[:, latents]
        values, order = torch.relu(pre).topk(self.k, dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter(-1, order, values)
        return pre, z * probability[:, None] if self.scale_by_prob else z

    def trace(self, x: Tensor) -> Trace:
        """Pre-activations and codes of other experts are 0; extras: each expert's `share` and mean `probability`."""
        p = self.route(x)
        probability, chosen = p.max(-1)
        pre, z, xhat = x.new_zeros(len(x), self.n_latents), x.new_zeros(len(x), self.n_latents), torch.zeros_like(x)
        for rows, latents in self._by_expert(x, chosen):
            pre[rows, latents], codes = self._expert_codes(x[rows], probability[rows], latents)
            z[rows, latents] = codes
            xhat[rows] = codes @ self.W_dec[latents]
        share = torch.bincount(chosen, minlength=self.experts).to(p) / max(1, len(x))
        return Trace(pre, z, xhat + self.b_dec, {"share": share, "probability": p.mean(0)})

    def _encode(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.d)
        probability, chosen = self.route(flat).max(-1)
        z = flat.new_zeros(len(flat), self.n_latents)
        for rows, latents in self._by_expert(flat, chosen):
            z[rows, latents] = self._expert_codes(flat[rows], probability[rows], latents)[1]
        return z.reshape(*x.shape[:-1], self.n_latents)

    def flops_per_token(self) -> int:
        """Floating-point operations of router, one expert's encoder and sparse decoding, two a multiply-add."""
        return 2 * self.d * (self.experts + self.n_latents // self.experts + self.k)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        self.b_dec.div_(scale)
        self.b_router.div_(scale)
        self.router.mul_(scale)  # probabilities stay what they were
