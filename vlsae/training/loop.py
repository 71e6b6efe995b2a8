"""The one training loop."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.activations.memory import TensorActivations
from vlsae.activations.reader import ActivationStore, ReaderState
from vlsae.activations.stream import StreamActivations
from vlsae.atomic import replacing
from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.checkpoint import save_dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.training.config import TrainConfig
from vlsae.training.objectives import OBJECTIVES, Step, explained_variance
from vlsae.training.objectives.base import Start
from vlsae.training.recipe import constructor_arguments, fit_to_data, make_config, objective_names
from vlsae.training.resampling import resample
from vlsae.training.start import initial_bias, total_variance

START_SAMPLE = 8192
CHECKPOINT = "checkpoint.pt"


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def train(
    data: ActivationStore | Tensor | str | Path | Iterable[Tensor],
    arch: str | None = None,
    *,
    engine: str = "auto",
    preset: str | None = None,
    out: str | Path | None = None,
    select=None,
    progress: bool = True,
    device: str = "cpu",
    **options: Any,
) -> Dictionary:
    """Train a dictionary on activations; call again with the same arguments to continue after any interruption.

    Args:
        data: an `ActivationStore`, its folder, a tensor `[N, d]`, or an iterable of such batches, in their order.
        arch: the family, "topk", "relu", ... ; overrides the preset's.
        engine: "torch" (autograd, every family) or "auto", the fastest there is for the family.
        preset: a named recipe of `vlsae.training.PRESETS` ("patchsae", "msae_rw", ...).
        out: folder of checkpoints, `train.jsonl` and the finished dictionary; nothing is written where None.
        select: bool `[n_images, n_tokens]`, the tokens of a store to train on; all where None.
        progress: show a progress bar.
        device: "cpu", "cuda", ...
        **options: fields of `TrainConfig`, such as `n_latents`, `k`, `l1`, `steps`, `lr`, `seed`; and what only this
            family or its loss terms read, such as `experts` or `target_l0`.

    Returns:
        The trained `Dictionary`; its metadata names the data, the model, the site and the recipe.

    Raises:
        ValueError: for unknown options, or a folder with a checkpoint of another recipe.
        TrainingDiverged: when the loss becomes NaN; the last good checkpoint stays in `out`.

    Example:
        >>> sae = train(torch.randn(512, 8), "topk", n_latents=16, k=2, steps=5, progress=False)
        >>> sae.atoms.shape
        torch.Size([16, 8])
    """
    if engine not in ("auto", "torch"):
        raise ValueError(f"engine={engine!r} is unknown; use 'auto' or 'torch'.")
    data = open_data(data)
    config = fit_to_data(make_config(arch, preset, options), data.d)
    run = _Run(data, config, None if out is None else Path(out), torch.device(device), select)
    with tqdm(total=config.steps, initial=run.step, desc=f"train {config.family}", disable=not progress) as bar:
        for x in run.batches():
            row = run.advance(x)
            bar.update(1)
            if row is not None:
                bar.set_postfix(ev=f"{row['ev']:.3f}", l0=f"{row['l0']:.1f}", dead=f"{row['dead']:.3f}")
    return run.finish()


def open_data(data) -> ActivationStore | TensorActivations | StreamActivations:
    """Activations in any form that `train` takes, as something with `shuffled`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(data, (str, Path)):
        return ActivationStore(data)
    if isinstance(data, Tensor):
        return TensorActivations(data)
    if isinstance(data, (ActivationStore, TensorActivations, StreamActivations)):
        return data
    if isinstance(data, Iterable):
        return StreamActivations(data)
    raise ValueError(f"Cannot train on {type(data).__name__}; give a store, its folder, [N, d], or batches of it.")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then down to 0 over the last `decay` of the steps; `step` counts from 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = min(1.0, (config.steps - step) / max(1.0, config.decay * config.steps))
    return config.lr * min(warm, (1 - math.cos(math.pi * left)) / 2 if config.schedule == "cosine" else left)


class _Run:
    """The state of a run: dictionary, optimiser, dead-latent counters, and where the data stands."""

    def __init__(self, data, config: TrainConfig, out: Path | None, device: torch.device, select):
        self.data, self.config, self.out, self.device, self.select = data, config, out, device, select
        family = DICTIONARIES.get(config.family)
        sample = self._sample()
        transform = InputTransform.fit(sample, config.input_transform)
        sample = transform(sample)
        self.dictionary = family(data.d, config.n_latents, seed=config.seed, **constructor_arguments(config))
        if isinstance(self.dictionary.b_dec, torch.nn.Parameter):
            self.dictionary.b_dec.data.copy_(initial_bias(sample, config.b_dec_init))
        self.dictionary.transform = transform
        self.dictionary.prepare(sample)
        self.dictionary.to(device)
        start = Start(data.d, total_variance(sample))
        self.objectives = [OBJECTIVES.get(name).make(config, start) for name in objective_names(config)]
        self.optimizer = torch.optim.AdamW(
            self.dictionary.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.adam_eps,
            weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        self.silent = torch.zeros(config.n_latents, dtype=torch.long, device=device)
        self.step, self.tokens_seen, self.reader = 0, 0, ReaderState(seed=config.seed)
        self.started = time.time()
        self._resume()

    def _sample(self) -> Tensor:
        if isinstance(self.data, StreamActivations):
            return self.data.sample(START_SAMPLE)
        first = next(self._pass(ReaderState(seed=self.config.seed), START_SAMPLE), None)
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

    def batches(self) -> Iterator[Tensor]:
        """Batches for the steps that are left, pass after pass, each pass in another order."""
        while self.step < self.config.steps:
            for x, state in self._pass(self.reader, self.config.batch_size):
                self.reader = state
                yield self.dictionary.transform(x.to(self.device))
                if self.step >= self.config.steps:
                    return
            self.reader = ReaderState(seed=self.reader.seed + 1)

    def advance(self, x: Tensor) -> dict | None:
        """One optimiser step; returns a row of the log every `log_every` steps."""
        config, sae = self.config, self.dictionary
        dead = self.silent >= config.dead_after_tokens
        trace = sae.trace(x)
        state = Step(sae, x, trace.pre, trace.z, trace.xhat, dead, trace.extras)
        terms = {objective.name: objective(state) for objective in self.objectives}
        loss = sum(terms.values())
        if not torch.isfinite(loss):
            there = self.out is not None and (self.out / CHECKPOINT).exists()
            kept = f"the last good checkpoint is in {self.out}" if there else "no checkpoint was written yet"
            raise TrainingDiverged(f"The loss is {loss.item()} at step {self.step}; {kept}. Try a smaller lr.")
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        sae.constrain_gradient()
        if config.clip_gradient:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), config.clip_gradient)
        self.optimizer.step()
        sae.constrain()
        fired = (state.z != 0).any(0)
        self.silent = torch.where(fired, 0, self.silent + len(x))
        self.step += 1
        self.tokens_seen += len(x)
        if config.dead_policy == "resample" and self.step % config.resample_every == 0:
            resample(state, self.optimizer, seed=config.seed * 1_000_003 + self.step)
            self.silent[dead] = 0
        told = self.step % config.log_every == 0 or self.step == config.steps
        row = self._row(state, terms, rate, dead) if told else None
        if self.out is not None:
            if row is not None:
                with open(self.out / "train.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self._save_checkpoint()
        return row

    @torch.no_grad()
    def _row(self, state: Step, terms: dict[str, Tensor], rate: float, dead: Tensor) -> dict:
        return {
            "step": self.step,
            "tokens": self.tokens_seen,
            "lr": rate,
            **{name: term.item() for name, term in terms.items()},
            "ev": explained_variance(state.x, state.xhat).item(),
            "l0": (state.z != 0).sum(-1).float().mean().item(),
            "dead": dead.float().mean().item(),
            "seconds": round(time.time() - self.started, 3),
        }

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.dictionary.parameters())

    def _save_checkpoint(self) -> None:
        if not self._is_finite():
            return  # a checkpoint must be a state from which training can go on; the next loss will stop the run
        state = {
            "config": asdict(self.config),
            "dictionary": self.dictionary.state_dict(),
            "objectives": {objective.name: objective.state for objective in self.objectives},
            "optimizer": self.optimizer.state_dict(),
            "silent": self.silent,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "data": self.fingerprint,
            "reader": [self.reader.seed, self.reader.rank, self.reader.position],
        }
        with replacing(self.out / CHECKPOINT) as partial:
            torch.save(state, partial)

    def _resume(self) -> None:
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        log = self.out / "train.jsonl"
        if not (self.out / CHECKPOINT).exists():
            log.unlink(missing_ok=True)
            return
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        now = asdict(self.config)
        changed = [f"{k}: {state['config'].get(k)!r} there, {v!r} now" for k, v in now.items()
                   if state["config"].get(k) != v]  # fmt: skip
        if changed:
            raise ValueError(f"{self.out} holds a run of another recipe ({'; '.join(changed)}); use another folder.")
        if isinstance(self.data, StreamActivations) and self.data.once:
            raise ValueError(f"{self.out} holds a run that a stream read once cannot continue; use another folder.")
        if state["data"] != self.fingerprint:
            raise ValueError(f"{self.out} holds a run on other data ({state['data']}); use another folder.")
        self.dictionary.load_state_dict(state["dictionary"])
        for objective in self.objectives:
            objective.state = state["objectives"][objective.name]
        self.optimizer.load_state_dict(state["optimizer"])
        self.silent, self.step, self.tokens_seen = state["silent"], state["step"], state["tokens_seen"]
        self.reader = ReaderState(*state["reader"])
        if log.exists():
            _cut_log(log, self.step)

    def finish(self) -> Dictionary:
        """Write down where the dictionary comes from, and save it."""
        if not self._is_finite():
            raise TrainingDiverged("The last step made weights that are not finite; try a smaller lr.")
        store = self.data if isinstance(self.data, ActivationStore) else None
        self.dictionary.metadata = {
            "model": store.config.model if store else None,
            "weight_hash": store.config.weight_hash if store else None,
            "site": store.site if store else None,
            "tokens": store.config.tokens if store else None,
            "source": store.config.source if store else None,
            "n_tokens_seen": self.tokens_seen,
            "recipe": asdict(self.config),
            "torch": torch.__version__,
        }
        self.dictionary.requires_grad_(False)
        if self.out is not None:
            save_dictionary(self.dictionary, self.out)
        return self.dictionary


def _cut_log(log: Path, step: int) -> None:
    """Keep the rows up to a step; a line that a kill cut short goes too."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue
    log.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")
