"""Transcoders: sparse codes of what a layer reads that rebuild what it writes."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.topk import TopKDictionary


@DICTIONARIES.register("transcoder")
class Transcoder(TopKDictionary):
    """`z = ReLU(TopK(x W_enc + b_enc))`, `yhat = z W_dec + b_dec`: no bias is taken off the input, it is another space.

    Train it on `PairedActivations` of an MLP's input and output; it is the learned counterpart of `FeedForwardKV`
    (arXiv 2510.22332). On plain activations it is a TopK autoencoder without pre-bias.

    Args:
        d: width of input and output.
        n_latents: number of atoms.
        k: largest number of active latents a vector, 1 to `n_latents`.
        seed: of the initial weights.

    Example:
        >>> Transcoder(d=4, n_latents=8, k=2)(torch.randn(5, 4)).shape
        torch.Size([5, 4])
    """

    family = "transcoder"

    def reads(self, x: Tensor) -> Tensor:
        """The input as it is."""
        return x

    @torch.no_grad()
    def fold_transform(self) -> None:
        """As for every family; the centre also moves into `b_enc`, because the input keeps no bias."""
        before = self.transform
        super().fold_transform()
        if before.kind != "none":
            self.b_enc.sub_(before.mean @ self.W_enc)
