"""One training run: its dictionary, optimiser, counters, and where its data stand."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vlsae.activations.modalities import TwoModalities
from vlsae.activations.paired import PairedActivations
from vlsae.activations.reader import ActivationStore, ReaderState
from vlsae.activations.stream import StreamActivations
from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace
from vlsae.dictionaries.checkpoint import save_dictionary, save_in_parts
from vlsae.dictionaries.transform import InputTransform
from vlsae.training.checkpoint import CHECKPOINT, read_checkpoint, weights_of_parts, write_checkpoint
from vlsae.training.config import TrainConfig
from vlsae.training.end_to_end import SplicedModel
from vlsae.training.loggers import open_loggers
from vlsae.training.objectives import OBJECTIVES, Step, explained_variance
from vlsae.training.objectives.base import Start
from vlsae.training.recipe import objective_names
from vlsae.training.resampling import resample
from vlsae.training.sorting import sort_latents
from vlsae.training.start import initial_bias, initial_dictionary, total_variance
from vlsae.training.team import ALONE, Team


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then down to 0 over the last `decay` of the steps; `step` counts from 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = min(1.0, (config.steps - step) / max(1.0, config.decay * config.steps))
    return config.lr * min(warm, (1 - math.cos(math.pi * left)) / 2 if config.schedule == "cosine" else left)


def origin(data) -> dict[str, str | None]:
    """Which model and site, which tokens and which images the activations come from, as far as they know."""
    if isinstance(data, PairedActivations):
        return {**origin(data.inputs), "target_site": origin(data.targets)["site"]}
    if isinstance(data, TwoModalities):
        return {**origin(data.pairs.inputs), "text_site": origin(data.pairs.targets)["site"]}
    if isinstance(data, ActivationStore):
        config = data.config
        known = (config.model, config.weight_hash, data.site, config.tokens, config.source)
    elif isinstance(data, SplicedModel):
        known = (data.model.spec, data.model.weight_hash, data.site, data.tokens, None)
    else:
        known = (None,) * 5
    return dict(zip(("model", "weight_hash", "site", "tokens", "source"), known, strict=True))


class Run:
    """The state of a run: dictionary, optimiser, dead-latent counters, and where the data stands.

    In a team, `dictionary` holds this process's latents, and every process reads all of the data.
    """

    def __init__(
        self,
        data,
        config: TrainConfig,
        out: Path | None,
        device: torch.device,
        select,
        logger: str = "",
        team: Team = ALONE,
    ):
        self.data, self.config, self.out, self.device, self.select = data, config, out, device, select
        self.team = team
        family = DICTIONARIES.get(config.family)
        sample = self._sample(family.start_sample)
        if hasattr(data, "target") and config.input_transform != "none":
            raise ValueError(
                f"input_transform={config.input_transform!r} would change inputs and not their targets; use 'none'."
            )
        if family.bimodal and not hasattr(data, "modality"):
            raise ValueError(
                f"{config.family!r} has a decoder for images and one for texts, and {type(data).__name__} does not say "
                "which is which; train it on TwoModalities(images, texts)."
            )
        transform = InputTransform.fit(sample, config.input_transform)
        sample = transform(sample)
        target = getattr(data, "target", sample)
        self.dictionary = initial_dictionary(config, data.d, self.team)
        if isinstance(self.dictionary.b_dec, torch.nn.Parameter):
            self.dictionary.b_dec.data.copy_(initial_bias(target, config.b_dec_init))
            self.dictionary.b_dec.requires_grad_(config.b_dec_init != "none")
        self.dictionary.transform = transform
        self.dictionary.prepare(sample)
        self.dictionary.to(device)
        start = Start(data.d, total_variance(target), data)
        self.objectives = [OBJECTIVES.get(name).make(config, start) for name in objective_names(config)]
        self.optimizer = torch.optim.AdamW(
            self.dictionary.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.adam_eps,
            weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        self.silent = torch.zeros(self.dictionary.n_latents, dtype=torch.long, device=device)
        self.step, self.tokens_seen, self.reader = 0, 0, ReaderState(seed=config.order_seed)
        self.started = time.time()
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            read_checkpoint(self)
        if self.team.size > 1:
            self.team.require_same(f"{asdict(config)} {self.fingerprint} {self.step} {self.reader}")
        self.loggers = open_loggers(logger, out, self.step, asdict(config)) if self.team.leads else []

    def _sample(self, n: int) -> Tensor:
        if isinstance(self.data, StreamActivations):
            return self.data.sample(n)
        first = next(self._pass(ReaderState(seed=self.config.order_seed), n), None)
        if first is None:
            raise ValueError("The data hold no tokens to train on; check `select`.")
        return first[0]

    def _pass(self, state: ReaderState, batch_size: int) -> Iterator[tuple[Tensor, ReaderState]]:
        select = {} if self.select is None else {"select": self.select}
        return self.data.shuffled(batch_size, state, **select)

    @cached_property
    def fingerprint(self) -> str:
        """The data and the choice among them, hashed once: a run is only continued on the same."""
        if self.select is None:
            return self.data.fingerprint
        return f"{self.data.fingerprint}/{hashlib.blake2b(self.select.tobytes(), digest_size=8).hexdigest()}"

    def raw_batches(self) -> Iterator[tuple[Tensor, ReaderState]]:
        """Activations for the steps that are left, pass after pass, each pass in another order."""
        while self.step < self.config.steps:
            for x, state in self._pass(self.reader, self.config.batch_size):
                yield x.to(self.device), state
                if self.step >= self.config.steps:
                    return
            self.reader = ReaderState(seed=self.reader.seed + 1)

    def batches(self) -> Iterator[Tensor]:
        """The same as the dictionary sees them; the run remembers where it stands."""
        for x, state in self.raw_batches():
            self.reader = state
            yield self.dictionary.transform(x)

    def advance(self, x: Tensor) -> dict | None:
        """One optimiser step; returns a row of the log every `log_every` steps."""
        loss = self.loss(x, self.trace(x))
        self.optimizer.zero_grad()
        loss.backward()
        return self.update()

    def trace(self, x: Tensor) -> Trace:
        """The dictionary's forward pass of training, told the modality of each row where it asks for that."""
        if self.dictionary.bimodal:
            return self.dictionary.trace(x, self.data.modality.to(x.device))
        return self.dictionary.trace(x)

    @property
    def dead(self) -> Tensor:
        """The latents `[n_latents]` that have been silent for too long."""
        return self.silent >= self.config.dead_after_tokens

    def loss(self, x: Tensor, trace: Trace, dead: Tensor | None = None) -> Tensor:
        """The loss of a batch, with the codes' own dead latents; raises TrainingDiverged where it is not finite."""
        dead = self.dead if dead is None else dead
        target = self.data.target.to(x) if hasattr(self.data, "target") else x
        self.at = Step(self.dictionary, x, trace.pre, trace.z, trace.xhat, dead, trace.extras, target)
        self.terms = {objective.name: objective(self.at) for objective in self.objectives}
        loss = sum(self.terms.values())
        self.require_finite(loss)
        return loss

    def require_finite(self, loss: Tensor) -> None:
        """Raises TrainingDiverged unless the loss is a number."""
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"The loss is {loss.item()} at step {self.step}{self._kept()}. Try a smaller lr.")

    def update(self) -> dict | None:
        """The optimiser's step on the gradients of `loss`, and everything that follows from it."""
        config = self.config
        self.step_weights()
        if config.dead_policy == "resample" and (self.step + 1) % config.resample_every == 0:
            resample(self.at, self.optimizer, seed=config.seed * 1_000_003 + self.step + 1)
            fired = (self.at.z != 0).any(0) | self.at.dead
        else:
            fired = (self.at.z != 0).any(0)
        if config.option("sort_latents", False):
            order = sort_latents(self.dictionary, self.at.z, self.optimizer)
            fired, self.silent = fired[order], self.silent[order]
        return self.finish_step(len(self.at.x), fired, self._measure)

    def step_weights(self) -> None:
        """The optimiser's step, with the constraints of the family before and after it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.dictionary.constrain_gradient()
        if self.config.clip_gradient:
            self.clip_gradients(self.config.clip_gradient)
        self.optimizer.step()
        self.dictionary.constrain()

    def clip_gradients(self, most: float) -> None:
        """Bring the norm of all gradients to `most` where it is larger."""
        torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), most)

    def finish_step(self, n: int, fired: Tensor, measure: Callable[[], dict[str, float]]) -> dict | None:
        """Count a step of `n` tokens in which these latents fired; log and save when it is time for it."""
        config, rate = self.config, learning_rate(self.config, self.step)
        self.silent = torch.where(fired, 0, self.silent + n)
        self.step += 1
        self.tokens_seen += n
        told = self.step % config.log_every == 0 or self.step == config.steps
        row = self._row(rate, measure()) if told else None
        if row is not None:
            for logger in self.loggers:
                logger.log(row)
        if self.out is not None and (self.step % config.checkpoint_every == 0 or self.step == config.steps):
            self.require_finite_weights()
            write_checkpoint(self)
        return row

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        return {
            "ev": explained_variance(self.at.target, self.at.xhat).item(),
            "l0": (self.at.z != 0).sum(-1).float().mean().item(),
            "dead": self.at.dead.float().mean().item(),
        }

    def _row(self, rate: float, measured: dict[str, float]) -> dict:
        return {
            "step": self.step,
            "tokens": self.tokens_seen,
            "lr": rate,
            **{name: term.item() for name, term in self.terms.items()},
            **measured,
            "seconds": round(time.time() - self.started, 3),
        }

    def require_finite_weights(self) -> None:
        """Raises TrainingDiverged, in all processes, where a weight of any of them is not a number."""
        finite = all(bool(torch.isfinite(p.detach().sum())) for p in self.dictionary.parameters())
        if not self.team.least(torch.tensor(float(finite), device=self.device)):
            raise TrainingDiverged(f"Weights are not finite after step {self.step}{self._kept()}. Try a smaller lr.")

    def _kept(self) -> str:
        there = self.out is not None and (self.out / CHECKPOINT).exists()
        return f"; the last good checkpoint is in {self.out}" if there else "; no checkpoint was written yet"

    def finish(self) -> Dictionary:
        """Write down where the dictionary comes from, and save it."""
        self.require_finite_weights()
        self.dictionary.metadata = {
            **origin(self.data),
            "n_tokens_seen": self.tokens_seen,
            "recipe": asdict(self.config),
            "torch": torch.__version__,
        }
        self.dictionary.requires_grad_(False)
        for logger in self.loggers:
            logger.close()
        if self.out is not None and self.team.leads:
            if self.team.shards > 1:
                save_in_parts(weights_of_parts(self.out), self.dictionary, self.config.n_latents, self.out)
            else:
                save_dictionary(self.dictionary, self.out)
        return self.dictionary
