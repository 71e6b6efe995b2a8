"""A run of a sparse family whose step never leaves the codes."""

from __future__ import annotations

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
from vlsae.training.objectives.auxk import auxiliary_k
from vlsae.training.recipe import objective_names
from vlsae.training.run import Run, learning_rate

TERMS = {
    "topk": {"reconstruction"}, "abs_topk": {"reconstruction"}, "batch_topk": {"reconstruction"},
    "nested_dictionary": {"nested_dictionary"}, "relu": {"reconstruction", "l1"},
}  # fmt: skip
LIKELY = 0.8  # of the last threshold: where BatchTopK begins to look


def can_fuse(config: TrainConfig, device: torch.device, data) -> bool:
    """Whether this engine makes the same steps as autograd for a recipe."""
    terms = set(objective_names(config)) - {"auxk"}
    return (
        device.type == "cpu"
        and terms == TERMS.get(config.family)
        and config.dead_policy in ("auxk", "none")
        and not hasattr(data, "target")
    )


class FusedRun(Run):
    """`Run` with its own step; state, checkpoints and logs are the same, so that either engine continues the other's.

    A step is one dense product for the codes; reconstruction, gradients and exact Adam then visit active codes only.
    """

    def advance(self, x: Tensor) -> dict | None:
        x = x.contiguous()
        self._dead = self.silent >= self.config.dead_after_tokens
        centred = self.dictionary.reads(x).detach().contiguous()
        codes = self._select(centred)
        batch = self._decode(x, codes)
        self._add_dead(centred, batch)
        self.require_finite(sum(self.terms.values()))
        self._learn(centred, codes, batch)
        return self.finish_step(len(x), self._fired(codes), lambda: self.measured)

    def _select(self, centred: Tensor) -> Rows:
        sae, self._aux = self.dictionary, None
        keys = sae.keys()
        rounded = keys.bfloat16() if self.config.selection == "bfloat16" else None
        products = Products(centred, keys, sae.b_enc.data, rounded)
        also = self._watch_dead(len(centred))
        if isinstance(sae, TopKDictionary):
            return top_k(products, sae.k, signed=sae.signed, also=also)
        if isinstance(sae, BatchTopKDictionary):
            rows = largest_of_batch(products, sae.k, LIKELY * getattr(self, "_threshold", 0.0), also=also)
            if len(rows.val):
                self._threshold = float(rows.val.min())
                sae.remember(torch.tensor(self._threshold))
            return rows
        return positive(products, also=also)

    def _watch_dead(self, n: int):
        """What collects the largest dead pre-activations while blocks of them pass by; None without dead latents."""
        if "auxk" not in objective_names(self.config) or not bool(self._dead.any()):
            return None
        dead = self._dead.nonzero()[:, 0]
        k = min(self.config.aux_k or auxiliary_k(self.dictionary.d), len(dead))
        bias = self.dictionary.b_enc.data[dead]
        self._aux = SimpleNamespace(idx=np.empty((n, k), np.int32), val=np.empty((n, k), np.float32))

        def collect(rows: slice, P: np.ndarray) -> None:
            block = torch.from_numpy(P)
            block = block if P.dtype == np.float32 else block.view(torch.bfloat16)
            values, at = (block[:, dead].float() + bias).topk(k, sorted=False)
            self._aux.idx[rows], self._aux.val[rows] = dead[at], torch.relu(values)

        return collect

    def _decode(self, x: Tensor, codes: Rows) -> SimpleNamespace:
        """Reconstruction, its loss and the gradients a token."""
        sae, n = self.dictionary, len(x)
        ends, weights = self._prefixes()
        norms = x.norm(dim=1)
        scale = {
            "sum": lambda: torch.full_like(norms, 1 / n),
            "patchsae": lambda: 1 / (n * x.shape[1] * norms.clamp_min(1e-6)),
            "normalised": lambda: 1 / (n * norms.square().clamp_min(1e-12)),
            "variance": lambda: torch.full_like(norms, 1 / (n * self._error().variance)),
        }[self.config.loss_scale]()
        G = np.empty((n, len(ends), sae.d), np.float32)
        R, loss = np.empty((n, sae.d), np.float32), np.empty(n, np.float32)
        u = np.empty(len(codes.val), np.float32)
        args = x.numpy(), sae.W_dec.data.numpy(), sae.b_dec.data.numpy(), codes.ptr, codes.idx, codes.val, ends, weights
        in_threads(kernels.reconstruct, n, *args, scale.numpy(), G, R, u, loss)
        main = self.objectives[0]
        self.terms = {main.name: torch.tensor(float(loss.sum(dtype=np.float64)))}
        self.measured = {
            "ev": 1 - float(np.square(R, dtype=np.float64).sum() / (x - x.mean(0)).double().square().sum()),
            "l0": len(codes.val) / n,
            "dead": float(self._dead.float().mean()),
        }
        token = np.repeat(np.arange(n, dtype=np.int32), np.diff(codes.ptr))
        row = token * len(ends) + np.searchsorted(ends, codes.idx, side="right").astype(np.int32)
        if len(self.objectives) > 1 and self.objectives[1].name == "l1":
            self._penalise(x, codes, token, u)
        return SimpleNamespace(G=G.reshape(-1, sae.d), R=R, u=u, token=token, row=row, idx=codes.idx, val=codes.val,
                               for_b_dec=torch.from_numpy(G[:, 0].sum(0)), for_bias=None)  # fmt: skip

    def _error(self):
        main = self.objectives[0]
        return main.reconstruction if isinstance(self.dictionary, NestedDictionaryMatryoshka) else main

    def _prefixes(self) -> tuple[np.ndarray, np.ndarray]:
        n, main = self.dictionary.n_latents, self.objectives[0]
        if not isinstance(self.dictionary, NestedDictionaryMatryoshka):
            return np.array([n]), np.ones(1, np.float32)
        ends = np.array(main.prefixes(SimpleNamespace(dictionary=self.dictionary)))
        main.step += 1
        return ends, (ends / n if main.weights == "size" else np.ones(len(ends))).astype(np.float32)

    def _penalise(self, x: Tensor, codes: Rows, token: np.ndarray, u: np.ndarray) -> None:
        l1 = self.objectives[1]
        share = (1 / x.norm(dim=1).clamp_min(1e-6) if l1.relative else torch.ones(len(x))).numpy() / len(x)
        coefficient = l1.steer_to(len(codes.val) / len(x))
        u += np.float32(coefficient) * share.astype(np.float32)[token]
        self.terms["l1"] = torch.tensor(coefficient * float((codes.val * share[token]).sum(dtype=np.float64)))

    def _add_dead(self, centred: Tensor, batch: SimpleNamespace) -> None:
        """AuxK: entries of dead latents, with gradient rows of their own."""
        if "auxk" in objective_names(self.config):
            self.terms["auxk"] = torch.zeros(())
        if self._aux is None:
            return
        n, d, k = len(centred), self.dictionary.d, self._aux.idx.shape[1]
        error = -batch.R
        spread = float(np.square(error - error.mean(0)).sum(1, dtype=np.float64).mean())
        if spread == 0:
            return
        scale = np.full(n, self.config.aux_coefficient / (spread * n), np.float32)
        order = np.argsort(self._aux.idx, axis=1)
        idx, val = (np.take_along_axis(a, order, 1).reshape(-1) for a in (self._aux.idx, self._aux.val))
        G, R = np.empty((n, 1, d), np.float32), np.empty((n, d), np.float32)
        u, loss = np.empty(n * k, np.float32), np.empty(n, np.float32)
        ptr, zero = np.arange(n + 1, dtype=np.int64) * k, np.zeros(d, np.float32)
        ends, one = np.array([self.dictionary.n_latents]), np.ones(1, np.float32)
        args = error, self.dictionary.W_dec.data.numpy(), zero, ptr, idx, val, ends, one, scale
        in_threads(kernels.reconstruct, n, *args, G, R, u, loss)
        self.terms["auxk"] = torch.tensor(float(loss.sum(dtype=np.float64)))
        u[val <= 0] = 0
        token = np.repeat(np.arange(n, dtype=np.int32), k)
        added = {"token": token, "row": len(batch.G) + token, "idx": idx, "val": val, "u": u}
        for name, values in added.items():
            setattr(batch, name, np.concatenate([getattr(batch, name), values.astype(getattr(batch, name).dtype)]))
        batch.G = np.concatenate([batch.G, G.reshape(-1, d)])

    def _learn(self, centred: Tensor, codes: Rows, batch: SimpleNamespace) -> None:
        """Adam on atoms and keys by the kernels, on the biases by torch's optimiser."""
        sae, config, n = self.dictionary, self.config, self.dictionary.n_latents
        rate = learning_rate(config, self.step)
        start, order = np.empty(n + 1, np.int64), np.empty(len(batch.idx), np.int64)
        kernels.by_latent(batch.idx, n, start, order)
        entries = batch.token, batch.row, batch.val, batch.u, start, order, sae.unit_atoms
        X, W, E = centred.numpy(), sae.W_dec.data.numpy(), sae.keys().numpy()
        bias = np.bincount(batch.idx, batch.u, n).astype(np.float32)
        sae.b_enc.grad = torch.from_numpy(bias.copy())
        if sae.b_dec.requires_grad:
            sae.b_dec.grad = batch.for_b_dec - torch.from_numpy(bias @ E)
        sae.W_enc.grad = sae.W_dec.grad = None
        clip = self._clip(X, batch.G, W, entries)
        atoms, keys = self._moments(sae.W_dec), self._moments(sae.W_enc)
        t = float(atoms["step"])
        scalars = [
            np.float32(v)
            for v in (
                clip, 1 - rate * config.weight_decay, rate / (1 - config.beta1**t), config.beta1, config.beta2,
                1 / (1 - config.beta2**t) ** 0.5, config.adam_eps,
            )
        ]  # fmt: skip
        moments = [m.numpy() for m in (atoms["exp_avg"], atoms["exp_avg_sq"])]
        others = [m.T.numpy() for m in (keys["exp_avg"], keys["exp_avg_sq"])]
        in_threads(kernels.update, n, X, batch.G, *entries, W, *moments, E, *others, bias, *scalars)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _clip(self, X, G, W, entries) -> float:
        """The factor that brings the norm of all gradients to `clip_gradient`, applied to those of the biases."""
        if not self.config.clip_gradient:
            return 1.0
        squares = np.empty(self.dictionary.n_latents, np.float32)
        in_threads(kernels.gradient_norms, len(squares), X, G, W, *entries, squares)
        rest = [p.grad for p in self.dictionary.parameters() if p.grad is not None]
        norm = (float(squares.sum(dtype=np.float64)) + sum(float(g.square().sum()) for g in rest)) ** 0.5
        factor = min(1.0, self.config.clip_gradient / (norm + 1e-6))
        for g in rest:
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

    def _fired(self, codes: Rows) -> Tensor:
        fired = torch.zeros(self.dictionary.n_latents, dtype=torch.bool)
        fired[torch.from_numpy(codes.idx).long()] = True
        return fired
