"""A run of a sparse family whose step never leaves the active codes: torch operations, on any device, in any team."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.nested_dictionary import NestedDictionaryMatryoshka
from vlsae.dictionaries.selection import Products, Rows, likely_bound, positive, top_k
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.training.config import TrainConfig
from vlsae.training.fused import tensors
from vlsae.training.fused.dead import DeadCodes
from vlsae.training.fused.entries import Entries, Errors
from vlsae.training.recipe import objective_names
from vlsae.training.run import Run

TERMS = {
    "topk": {"reconstruction"}, "abs_topk": {"reconstruction"}, "batch_topk": {"reconstruction"},
    "nested_dictionary": {"nested_dictionary"}, "relu": {"reconstruction", "l1"},
}  # fmt: skip
LIKELY = 0.8  # of the moving threshold: where BatchTopK begins to look
DENSE = 1 / 32  # share of active latents above which ReLU dictionaries are quicker trained by autograd
PROBE = 64  # one token in so many tells whether they are


def can_fuse(config: TrainConfig, data) -> bool:
    """Whether this engine makes the same steps as autograd for a recipe."""
    return (
        set(objective_names(config)) - {"auxk"} == TERMS.get(config.family)
        and config.dead_policy in ("auxk", "none")
        and not hasattr(data, "target")
        and config.loss_scale != "absolute"
        and not config.option("sort_latents", False)
    )


def scale_gradients(dictionary: Dictionary, norm: Tensor, most: float) -> float:
    """Scale the gradients that are there where those of all weights have a norm above `most`; returns the factor."""
    factor = min(1.0, most / (float(norm) + 1e-6))
    for p in dictionary.parameters():
        if p.grad is not None:
            p.grad.mul_(factor)
    return factor


class SparseRun(Run):
    """`Run` with its own step; state, checkpoints and logs are the same, so that either engine continues the other's.

    A step is one dense product for the codes; reconstruction and gradients then visit active codes only. Sums over tokens
    or latents that other processes have go through the team.
    """

    def advance(self, x: Tensor) -> dict | None:
        if self._is_dense(x):
            return super().advance(x)
        self.n = len(x)
        x = self.team.share(x).contiguous()
        centred = self.dictionary.reads(x).detach().contiguous()
        dead = self.dead
        watch = self._watch(dead, len(x))
        codes = self._select(centred, watch)
        errors, entries = self._reconstruct(x, codes)
        if self.config.dead_policy == "auxk":
            self.terms["auxk"] = self._explain_rest(errors.residual, watch, entries)
        self.require_finite(sum(self.terms.values()))
        self.learn(centred, entries, errors.G[:, 0].sum(0))
        fired = torch.zeros_like(dead)
        fired[codes.idx.long()] = True
        fired = self.team.anywhere(fired)
        return self.finish_step(self.n, fired, lambda: self._tell(x, codes, errors.residual, dead))

    def _is_dense(self, x: Tensor) -> bool:
        """Whether a ReLU dictionary has too many active codes to gain from their being sparse, as at the start."""
        if self.dictionary.family != "relu" or self.team.size > 1:
            return False
        return float((self.dictionary.pre(x[::PROBE]).detach() > 0).float().mean()) > DENSE

    def _watch(self, dead: Tensor, n: int) -> DeadCodes | None:
        """Who collects the codes of dead latents while products pass by; None where no latent is dead."""
        if self.config.dead_policy != "auxk":
            return None
        n_dead = int(self.team.over_latents(dead.sum()))
        if n_dead == 0:
            return None
        latents = dead.nonzero()[:, 0]
        k = min(self.objectives[-1].k, n_dead)  # AuxK comes last
        return DeadCodes(latents, self.dictionary.b_enc.data[latents], k, n)

    def _select(self, centred: Tensor, watch: DeadCodes | None) -> Rows:
        sae, keys = self.dictionary, self.dictionary.keys()
        rounded = keys.bfloat16() if self.config.selection == "bfloat16" else None
        products = Products(centred, keys, sae.b_enc.data, rounded)
        if isinstance(sae, TopKDictionary):
            own = top_k(products, min(sae.k, sae.n_latents), signed=sae.signed, also=watch)
            return self.team.best(own, sae.k, sae.signed)
        if not isinstance(sae, BatchTopKDictionary):
            return positive(products, also=watch)
        return self._largest_of_batch(products, watch)

    def _largest_of_batch(self, products: Products, watch: DeadCodes | None) -> Rows:
        """The `n k` largest positive codes of the whole batch; ties go to the earlier token, then the lower latent."""
        sae, team, wanted = self.dictionary, self.team, self.n * self.dictionary.k
        room = 8 * sae.k
        bound = LIKELY * float(sae.threshold[0]) or self._likely(products, wanted)  # 0 before the first step
        rows = positive(products, bound, room, also=watch)
        if bound > 0 and self._in_all(rows.val) < wanted:
            likely = self._likely(products, wanted)
            for lower in (likely, likely / 2, likely / 4, 0.0):  # half of all codes lie above 0: the last resort
                bound = min(bound, lower)
                rows = positive(products, bound, room)
                if bound == 0 or self._in_all(rows.val) >= wanted:
                    break
        first, offset = team.own_tokens(self.n).start, team.own_latents(self.config.n_latents).start

        def keys(at: Tensor) -> Tensor:
            return (first + rows.numbers[at]) * self.config.n_latents + offset + rows.idx[at]

        rows = rows.keep(team.largest(rows, wanted, keys))
        smallest = team.least(torch.cat([rows.val, rows.val.new_tensor([torch.inf])]).min())
        if torch.isfinite(smallest):
            sae.remember(smallest)
        return rows

    def _likely(self, products: Products, wanted: int) -> float:
        """The least `likely_bound` of all processes."""
        bound = likely_bound(products, wanted) if len(products.x) else torch.inf
        return float(self.team.least(torch.tensor(bound, device=self.device)))

    def _in_all(self, values: Tensor) -> int:
        """The number of values in all processes."""
        return int(self.team.over_all(torch.tensor(len(values), device=self.device)))

    def _around_mean(self, x: Tensor) -> Tensor:
        """Sum of squares of the whole batch around its mean, of which `x` are this process's rows."""
        mean = self.team.over_tokens(x.sum(0)) / self.n
        return self.team.over_tokens((x - mean).square().sum(dtype=torch.float64))

    def _reconstruct(self, x: Tensor, codes: Rows) -> tuple[Errors, Entries]:
        """Reconstructions, the terms of the loss, and the gradients of every code."""
        ends, weights = self._prefixes()
        b_dec, scale = self.dictionary.b_dec.data, self._token_weights(x)
        errors = self.nested_errors(x, b_dec, codes, ends, weights, scale)
        entries = Entries.of(codes, errors, ends)
        self.terms = {self.objectives[0].name: self.team.over_tokens(errors.loss)}
        if self.dictionary.family == "relu":
            self.terms["l1"] = self._penalise(x, entries)
        return errors, entries

    def nested_errors(self, y, bias, codes: Rows, ends, weights, scale) -> Errors:
        """`tensors.nested_errors` with this run's atoms and team."""
        W = self.dictionary.W_dec.data
        return tensors.nested_errors(y, W, bias, codes, ends, weights, scale, self.team)

    def _prefixes(self) -> tuple[Tensor, Tensor]:
        """Ends and weights of nested reconstructions; one of all latents for families that are not nested."""
        n, term = self.dictionary.n_latents, self.objectives[0]
        if not isinstance(self.dictionary, NestedDictionaryMatryoshka):
            return torch.tensor([n], device=self.device), torch.ones(1, device=self.device)
        ends = torch.tensor(term.prefixes(SimpleNamespace(dictionary=self.dictionary)), device=self.device)
        term.step += 1
        return ends, ends / n if term.weights == "size" else torch.ones(len(ends), device=self.device)

    def _token_weights(self, x: Tensor) -> Tensor:
        """What every token's squared error is multiplied with, `[B]`; see `Reconstruction`."""
        term = self.objectives[0]
        error = term.reconstruction if isinstance(self.dictionary, NestedDictionaryMatryoshka) else term
        norms = x.norm(dim=1)
        weights = {
            "sum": lambda: torch.ones_like(norms),
            "patchsae": lambda: 1 / (x.shape[1] * norms.clamp_min(1e-6)),
            "normalised": lambda: 1 / norms.square().clamp_min(1e-12),
            "variance": lambda: torch.full_like(norms, 1 / error.variance),
        }
        return weights[error.scale]() / self.n

    def _penalise(self, x: Tensor, entries: Entries) -> Tensor:
        """L1, and its part in the gradients of the codes."""
        l1 = self.objectives[1]
        share = (1 / x.norm(dim=1).clamp_min(1e-6) if l1.relative else x.new_ones(len(x))) / self.n
        coefficient = l1.steer_to(self._in_all(entries.val) / self.n)
        each = share[entries.token.long()]
        entries.u += coefficient * each
        return coefficient * self.team.over_all((entries.val * each).sum(dtype=torch.float64))

    def _explain_rest(self, residual: Tensor, watch: DeadCodes | None, entries: Entries) -> Tensor:
        """Add the entries by which dead latents explain what is left; returns AuxK's term of the loss."""
        nothing, error = torch.zeros((), device=residual.device), -residual
        if watch is None:
            return nothing
        spread = float(self._around_mean(error)) / self.n
        if spread == 0:
            return nothing
        codes = self.team.best(watch.codes, watch.k)
        ends = torch.tensor([self.dictionary.n_latents], device=error.device)
        scale = torch.full_like(error[:, 0], self.objectives[-1].coefficient / (spread * self.n))
        no_bias = error.new_zeros(error.shape[1])
        errors = self.nested_errors(error, no_bias, codes, ends, torch.ones_like(scale[:1]), scale)
        entries.extend(Entries.of(codes, errors, ends))
        return self.team.over_tokens(errors.loss)

    def learn(self, centred: Tensor, entries: Entries, for_b_dec: Tensor) -> None:
        """Gradients of all weights from the entries, and the optimiser's step."""
        sae, total, n = self.dictionary, self.team.over_tokens, self.dictionary.n_latents
        sae.W_dec.grad = total(tensors.gathered(entries.idx, entries.row, entries.val, entries.G, n))
        sae.W_enc.grad = total(tensors.gathered(entries.idx, entries.token, entries.u, centred, n)).T
        sae.b_enc.grad = total(torch.bincount(entries.idx, entries.u, n).float())
        if sae.b_dec.requires_grad:
            sae.b_dec.grad = total(for_b_dec) - self.team.over_latents(sae.b_enc.grad @ sae.keys())
        self.step_weights()

    def clip_gradients(self, most: float) -> None:
        sae = self.dictionary
        own = sum(p.grad.square().sum(dtype=torch.float64) for p in (sae.W_dec, sae.W_enc, sae.b_enc))
        shared = sae.b_dec.grad.square().sum(dtype=torch.float64) if sae.b_dec.requires_grad else 0.0
        scale_gradients(sae, (self.team.over_latents(own) + shared).sqrt(), most)

    def _tell(self, x: Tensor, codes: Rows, residual: Tensor, dead: Tensor) -> dict[str, float]:
        left = self.team.over_tokens(residual.square().sum(dtype=torch.float64))
        share = self.team.over_latents(dead.sum()) / self.config.n_latents
        ev = 1 - float(left / self._around_mean(x))
        return {"ev": ev, "l0": self._in_all(codes.val) / self.n, "dead": float(share)}
