"""The same step on the processor, by compiled loops: gradients of atoms are never written down."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.selection import Rows
from vlsae.threads import in_threads
from vlsae.training.fused import kernels
from vlsae.training.fused.entries import Entries, Errors
from vlsae.training.fused.run import SparseRun, scale_gradients
from vlsae.training.run import learning_rate


class CompiledRun(SparseRun):
    """`SparseRun` for one process on the processor; tensors and arrays share their memory."""

    def nested_errors(self, y, bias, codes: Rows, ends, weights, scale) -> Errors:
        n, d = y.shape
        G, residual = torch.empty(n, len(ends), d), torch.empty(n, d)
        u, loss = torch.empty(len(codes.val)), torch.empty(n)
        arrays = [
            y,
            self.dictionary.W_dec.data,
            bias,
            codes.ptr,
            codes.idx,
            codes.val,
            ends,
            weights,
            scale,
            G,
            residual,
        ]
        in_threads(kernels.reconstruct, n, *(part.numpy() for part in (*arrays, u, loss)))
        return Errors(G, residual, u, loss.sum(dtype=torch.float64))

    def learn(self, centred: Tensor, entries: Entries, for_b_dec: Tensor) -> None:
        """Adam on atoms and keys by the kernels, on the biases by torch's optimiser."""
        sae, config, n = self.dictionary, self.config, self.dictionary.n_latents
        rate = learning_rate(config, self.step)
        start, order = torch.empty(n + 1, dtype=torch.int64), torch.empty(len(entries.idx), dtype=torch.int64)
        kernels.by_latent(entries.idx.numpy(), n, start.numpy(), order.numpy())
        sae.W_enc.grad = sae.W_dec.grad = None
        sae.b_enc.grad = torch.bincount(entries.idx, entries.u, n).float()
        if sae.b_dec.requires_grad:
            sae.b_dec.grad = for_b_dec - sae.b_enc.grad @ sae.keys()
        given = [centred, entries.G, sae.W_dec.data, entries.token, entries.row, entries.val, entries.u, start, order]
        sparse = (*(part.numpy() for part in given), sae.unit_atoms)
        clip = self._clip(sparse)
        atoms, keys = self._moments(sae.W_dec), self._moments(sae.W_enc)
        t = float(atoms["step"])
        scalars = (
            clip, 1 - rate * config.weight_decay, rate / (1 - config.beta1**t), config.beta1, config.beta2,
            1 / (1 - config.beta2**t) ** 0.5, config.adam_eps,
        )  # fmt: skip
        own = [atoms["exp_avg"], atoms["exp_avg_sq"], sae.keys(), keys["exp_avg"].T, keys["exp_avg_sq"].T]
        in_threads(kernels.update, n, *sparse, *(part.numpy() for part in own), *map(np.float32, scalars))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _clip(self, sparse: tuple) -> float:
        """The factor that brings the norm of all gradients to `clip_gradient`; those of the biases are scaled here."""
        if not self.config.clip_gradient:
            return 1.0
        squares = torch.empty(self.dictionary.n_latents)
        in_threads(kernels.gradient_norms, len(squares), *sparse, squares.numpy())
        biases = sum(p.grad.square().sum() for p in self.dictionary.parameters() if p.grad is not None)
        norm = (squares.sum(dtype=torch.float64) + biases).sqrt()
        return scale_gradients(self.dictionary, norm, self.config.clip_gradient)

    def _moments(self, p: torch.nn.Parameter) -> dict:
        """Adam's state of a parameter, one step on, kept where torch's optimiser keeps it."""
        state = self.optimizer.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        return state
