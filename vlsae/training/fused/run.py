"""A run of a sparse family whose step never leaves the codes."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.nested_dictionary import NestedDictionaryMatryoshka
from vlsae.dictionaries.selection import Products, Rows, in_threads, largest_of_batch, positive, top_k
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.training.config import TrainConfig
from vlsae.training.fused import kernels
from vlsae.training.fused.dead import DeadCodes
from vlsae.training.recipe import objective_names
from vlsae.training.run import Run, learning_rate

TERMS = {
    "topk": {"reconstruction"}, "abs_topk": {"reconstruction"}, "batch_topk": {"reconstruction"},
    "nested_dictionary": {"nested_dictionary"}, "relu": {"reconstruction", "l1"},
}  # fmt: skip
LIKELY = 0.8  # of the moving threshold: where BatchTopK begins to look


def can_fuse(config: TrainConfig, device: torch.device, data) -> bool:
    """Whether this engine makes the same steps as autograd for a recipe."""
    return (
        device.type == "cpu"
        and set(objective_names(config)) - {"auxk"} == TERMS.get(config.family)
        and config.dead_policy in ("auxk", "none")
        and not hasattr(data, "target")
        and not config.option("sort_latents", False)
    )


@dataclass
class Entries:
    """Active codes with their gradients: entry `e` is code `val[e]` of latent `idx[e]` for token `token[e]`.

    Attributes:
        u: gradient of the loss towards each code.
        G: `[rows, d]`, gradients towards reconstructions; `row` says which one an entry's atom takes part in.
        for_b_dec: gradient of the decoder bias as part of the reconstruction, `[d]`.
        residual: `[B, d]`, `xhat - x`.
    """

    token: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    u: np.ndarray
    row: np.ndarray
    G: np.ndarray
    for_b_dec: np.ndarray
    residual: np.ndarray

    def extend(self, token, idx, val, u, G) -> None:
        """Add entries that have a gradient row a token."""
        rows = {"token": token, "idx": idx, "val": val, "u": u, "row": len(self.G) + token}
        for name, values in rows.items():
            setattr(self, name, np.concatenate([getattr(self, name), values.astype(getattr(self, name).dtype)]))
        self.G = np.concatenate([self.G, G])


class FusedRun(Run):
    """`Run` with its own step; state, checkpoints and logs are the same, so that either engine continues the other's.

    A step is one dense product for the codes; reconstruction, gradients and exact Adam then visit active codes only.
    """

    def advance(self, x: Tensor) -> dict | None:
        x = x.contiguous()
        centred = self.dictionary.reads(x).detach().contiguous()
        dead = self.silent >= self.config.dead_after_tokens
        watch = DeadCodes.watch(self.dictionary, self.config, dead, len(x))
        codes = self._select(centred, watch)
        entries = self._reconstruct(x, codes)
        if watch is not None:
            self.terms["auxk"] = watch.explain(self.dictionary, self.config.aux_coefficient, entries)
        elif self.config.dead_policy == "auxk":
            self.terms["auxk"] = torch.zeros(())
        self.require_finite(sum(self.terms.values()))
        self._learn(centred, entries)
        fired = torch.zeros_like(dead)
        fired[torch.from_numpy(codes.idx).long()] = True
        return self.finish_step(len(x), fired, lambda: self._tell(x, codes, entries, dead))

    def _tell(self, x: Tensor, codes: Rows, entries: Entries, dead: Tensor) -> dict[str, float]:
        left, spread = np.square(entries.residual, dtype=np.float64).sum(), (x - x.mean(0)).double().square().sum()
        return {"ev": 1 - float(left / spread), "l0": len(codes.val) / len(x), "dead": float(dead.float().mean())}

    def _select(self, centred: Tensor, watch: DeadCodes | None) -> Rows:
        sae = self.dictionary
        keys = sae.keys()
        rounded = keys.bfloat16() if self.config.selection == "bfloat16" else None
        products = Products(centred, keys, sae.b_enc.data, rounded)
        if isinstance(sae, TopKDictionary):
            return top_k(products, sae.k, signed=sae.signed, also=watch)
        if not isinstance(sae, BatchTopKDictionary):
            return positive(products, also=watch)
        rows = largest_of_batch(products, sae.k, LIKELY * float(sae.threshold[0]), also=watch)
        if len(rows.val):
            sae.remember(torch.tensor(float(rows.val.min())))
        return rows

    def _reconstruct(self, x: Tensor, codes: Rows) -> Entries:
        """Reconstruction, the terms of the loss, and the gradients of every token."""
        sae, n = self.dictionary, len(x)
        ends, weights = self._prefixes()
        G = np.empty((n, len(ends), sae.d), np.float32)
        residual, loss = np.empty((n, sae.d), np.float32), np.empty(n, np.float32)
        u = np.empty(len(codes.val), np.float32)
        W, b = sae.W_dec.data.numpy(), sae.b_dec.data.numpy()
        sparse, scale = (codes.ptr, codes.idx, codes.val), self._token_weights(x)
        in_threads(kernels.reconstruct, n, x.numpy(), W, b, *sparse, ends, weights, scale, G, residual, u, loss)
        self.terms = {self.objectives[0].name: torch.tensor(float(loss.sum(dtype=np.float64)))}
        token = np.repeat(np.arange(n, dtype=np.int32), np.diff(codes.ptr))
        row = token * len(ends) + np.searchsorted(ends, codes.idx, side="right").astype(np.int32)
        if sae.family == "relu":
            self._penalise(x, codes, token, u)
        return Entries(token, codes.idx, codes.val, u, row, G.reshape(-1, sae.d), G[:, 0].sum(0), residual)

    def _prefixes(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends and weights of nested reconstructions; one of all latents for families that are not nested."""
        n, term = self.dictionary.n_latents, self.objectives[0]
        if not isinstance(self.dictionary, NestedDictionaryMatryoshka):
            return np.array([n]), np.ones(1, np.float32)
        ends = np.array(term.prefixes(SimpleNamespace(dictionary=self.dictionary)))
        term.step += 1
        return ends, (ends / n if term.weights == "size" else np.ones(len(ends))).astype(np.float32)

    def _token_weights(self, x: Tensor) -> np.ndarray:
        """What every token's squared error is multiplied with, `[B]`; see `Reconstruction`."""
        term = self.objectives[0]
        error = term.reconstruction if isinstance(self.dictionary, NestedDictionaryMatryoshka) else term
        norms = x.norm(dim=1)
        weights = {
            "sum": torch.ones_like(norms),
            "patchsae": 1 / (x.shape[1] * norms.clamp_min(1e-6)),
            "normalised": 1 / norms.square().clamp_min(1e-12),
            "variance": torch.full_like(norms, 1 / error.variance),
        }
        return (weights[error.scale] / len(x)).numpy()

    def _penalise(self, x: Tensor, codes: Rows, token: np.ndarray, u: np.ndarray) -> None:
        l1 = self.objectives[1]
        share = (1 / x.norm(dim=1).clamp_min(1e-6) if l1.relative else torch.ones(len(x))).numpy() / len(x)
        coefficient = l1.steer_to(len(codes.val) / len(x))
        u += np.float32(coefficient) * share[token]
        self.terms["l1"] = torch.tensor(coefficient * float((codes.val * share[token]).sum(dtype=np.float64)))

    def _learn(self, centred: Tensor, entries: Entries) -> None:
        """Adam on atoms and keys by the kernels, on the biases by torch's optimiser."""
        sae, config, n = self.dictionary, self.config, self.dictionary.n_latents
        rate = learning_rate(config, self.step)
        start, order = np.empty(n + 1, np.int64), np.empty(len(entries.idx), np.int64)
        kernels.by_latent(entries.idx, n, start, order)
        X, W, E = centred.numpy(), sae.W_dec.data.numpy(), sae.keys().numpy()
        for_keys = np.bincount(entries.idx, entries.u, n).astype(np.float32)
        sae.W_enc.grad = sae.W_dec.grad = None
        sae.b_enc.grad = torch.from_numpy(for_keys)
        if sae.b_dec.requires_grad:
            sae.b_dec.grad = torch.from_numpy(entries.for_b_dec - for_keys @ E)
        sparse = (X, entries.G, W, entries.token, entries.row, entries.val, entries.u, start, order, sae.unit_atoms)
        clip = self._clip(sparse)
        atoms, keys = self._moments(sae.W_dec), self._moments(sae.W_enc)
        t = float(atoms["step"])
        scalars = (
            clip, 1 - rate * config.weight_decay, rate / (1 - config.beta1**t), config.beta1, config.beta2,
            1 / (1 - config.beta2**t) ** 0.5, config.adam_eps,
        )  # fmt: skip
        moments = (atoms["exp_avg"].numpy(), atoms["exp_avg_sq"].numpy())
        of_keys = (keys["exp_avg"].T.numpy(), keys["exp_avg_sq"].T.numpy())
        in_threads(kernels.update, n, *sparse, *moments, E, *of_keys, *map(np.float32, scalars))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _clip(self, sparse: tuple) -> float:
        """The factor that brings the norm of all gradients to `clip_gradient`; those of the biases are scaled here."""
        if not self.config.clip_gradient:
            return 1.0
        squares = np.empty(self.dictionary.n_latents, np.float32)
        in_threads(kernels.gradient_norms, len(squares), *sparse, squares)
        biases = [p.grad for p in self.dictionary.parameters() if p.grad is not None]
        norm = (float(squares.sum(dtype=np.float64)) + sum(float(g.square().sum()) for g in biases)) ** 0.5
        factor = min(1.0, self.config.clip_gradient / (norm + 1e-6))
        for g in biases:
            g.mul_(factor)
        return factor

    def _moments(self, p: torch.nn.Parameter) -> dict:
        """Adam's state of a parameter, one step on, kept where torch's optimiser keeps it."""
        state = self.optimizer.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        return state
