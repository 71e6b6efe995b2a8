"""AuxK over sparse codes: the largest dead pre-activations, collected while blocks of them pass by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.selection import in_threads
from vlsae.training.config import TrainConfig
from vlsae.training.fused import kernels
from vlsae.training.objectives.auxk import auxiliary_k


@dataclass
class DeadCodes:
    """Codes of dead latents that AuxK lets speak.

    Attributes:
        latents: numbers of the dead; bias: their encoder biases.
        idx, val: `[B, k]`, the k largest of every token; values below 0 are set to 0.
    """

    latents: Tensor
    bias: Tensor
    idx: np.ndarray
    val: np.ndarray

    @classmethod
    def watch(cls, dictionary: Dictionary, config: TrainConfig, dead: Tensor, n: int) -> DeadCodes | None:
        """To be called with every block of products of `n` tokens; None where there is nobody to watch."""
        latents = dead.nonzero()[:, 0]
        if config.dead_policy != "auxk" or len(latents) == 0:
            return None
        shape = n, min(config.aux_k or auxiliary_k(dictionary.d), len(latents))
        return cls(latents, dictionary.b_enc.data[latents], np.empty(shape, np.int32), np.empty(shape, np.float32))

    def __call__(self, rows: slice, P: np.ndarray) -> None:
        block = torch.from_numpy(P)
        block = block.view(torch.bfloat16) if block.dtype == torch.uint16 else block
        scores = block[:, self.latents].float() + self.bias
        values, at = scores.topk(self.idx.shape[1], sorted=False)
        self.idx[rows], self.val[rows] = self.latents[at], torch.relu(values)

    def explain(self, dictionary: Dictionary, coefficient: float, entries) -> Tensor:
        """Add the entries by which dead latents explain what is left; returns AuxK's term of the loss."""
        error = -entries.residual
        spread = float(np.square(error - error.mean(0)).sum(1, dtype=np.float64).mean())
        if spread == 0:
            return torch.zeros(())
        (n, d), k = error.shape, self.idx.shape[1]
        ptr, idx, val = np.arange(n + 1, dtype=np.int64) * k, self.idx.reshape(-1), self.val.reshape(-1)
        scale = np.full(n, coefficient / (spread * n), np.float32)
        G, residual = np.empty((n, 1, d), np.float32), np.empty((n, d), np.float32)
        u, loss = np.empty(n * k, np.float32), np.empty(n, np.float32)
        ends, weights, bias = np.array([dictionary.n_latents]), np.ones(1, np.float32), np.zeros(d, np.float32)
        W = dictionary.W_dec.data.numpy()
        in_threads(kernels.reconstruct, n, error, W, bias, ptr, idx, val, ends, weights, scale, G, residual, u, loss)
        u[val <= 0] = 0
        entries.extend(np.repeat(np.arange(n, dtype=np.int32), k), idx, val, u, G.reshape(-1, d))
        return torch.tensor(float(loss.sum(dtype=np.float64)))
