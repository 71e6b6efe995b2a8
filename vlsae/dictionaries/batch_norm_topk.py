"""TopK with batch-normalised pre-activations, the encoder of Universal SAEs (arXiv 2502.03714)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace
from vlsae.dictionaries.topk import TopKDictionary


@DICTIONARIES.register("batch_norm_topk")
class BatchNormTopKDictionary(TopKDictionary):
    """`z = TopK(ReLU(BN((x - b_dec) W_enc + b_enc)))`, `xhat = z W_dec + b_dec` (released code of the paper, b_dec = 0).

    Training normalises by the batch and keeps running averages; `encode` uses those, so codes of a vector never depend on
    the rest of its batch, and differ a little from those of training.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: largest number of active latents a vector, 1 to `n_latents`.
        seed: of the initial weights.

    Raises:
        ValueError: for an impossible `k`.

    Example:
        >>> BatchNormTopKDictionary(d=4, n_latents=8, k=2)(torch.randn(5, 4)).shape
        torch.Size([5, 4])
    """

    family = "batch_norm_topk"
    homogeneous = False  # the running averages do not scale with the input
    can_pick = False
    momentum, epsilon = 0.1, 1e-5  # torch's and the released code's
    latent_axis: ClassVar = {**Dictionary.latent_axis, "gain": 0, "shift": 0, "running_mean": 0, "running_var": 0}

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        self.gain = nn.Parameter(torch.ones(self.n_latents))
        self.shift = nn.Parameter(torch.zeros(self.n_latents))
        self.register_buffer("running_mean", torch.zeros(self.n_latents))
        self.register_buffer("running_var", torch.ones(self.n_latents))

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations `[..., n_latents]`, normalised by the running averages."""
        scale = self.gain / (self.running_var + self.epsilon).sqrt()
        return (super().pre(x) - self.running_mean) * scale + self.shift

    def trace(self, x: Tensor) -> Trace:
        pre = F.batch_norm(
            super().pre(x), self.running_mean, self.running_var, self.gain, self.shift,
            training=True, momentum=self.momentum, eps=self.epsilon,
        )  # fmt: skip
        z = self.activate(pre)
        return Trace(pre, z, self._decode(z))
