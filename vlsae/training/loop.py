"""Training a dictionary: one loop for every family."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.activations.memory import TensorActivations
from vlsae.activations.reader import ActivationStore
from vlsae.activations.stream import StreamActivations
from vlsae.dictionaries.base import Dictionary
from vlsae.training.config import TrainConfig
from vlsae.training.fused.compiled import CompiledRun
from vlsae.training.fused.run import SparseRun, can_fuse
from vlsae.training.recipe import fit_to_data, make_config
from vlsae.training.run import Run, TrainingDiverged
from vlsae.training.team import ALONE, Team

__all__ = ["TrainingDiverged", "open_data", "train"]


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
    logger: str = "",
    latent_shards: int = 1,
    **options: Any,
) -> Dictionary:
    """Train a dictionary on activations; call again with the same arguments to continue after any interruption.

    Args:
        data: an `ActivationStore`, its folder, a tensor `[N, d]`, an iterable of such batches, in their order, or a
            `SplicedModel` for end-to-end training, `PairedActivations` for a target other than the input, or
            `TwoModalities` for images and texts.
        arch: the family, "topk", "relu", ... ; overrides the preset's.
        engine: "torch" (autograd, every family), "fused" (the same steps from the active codes alone: TopK, AbsTopK,
            BatchTopK, nested dictionaries and ReLU with L1) or "auto", fused where it can be.
        preset: a named recipe of `vlsae.training.PRESETS` ("patchsae", "msae_rw", ...).
        out: folder of checkpoints, `train.jsonl` and the finished dictionary; nothing is written where None.
        select: bool `[n_images, n_tokens]`, the tokens of a store to train on; all where None.
        progress: show a progress bar.
        device: "cpu", "cuda", ...
        logger: "tensorboard" or "wandb" beside `train.jsonl`, where that package is installed.
        latent_shards: parts of the dictionary, for processes started by torchrun: each has one part, and the batch is
            divided among those with the same part. Every process reads all of `data` and returns its own part; the
            whole is written to `out`, which all must see.
        **options: fields of `TrainConfig`, such as `n_latents`, `k`, `l1`, `steps`, `lr`, `seed`; and what only this
            family or its loss terms read, such as `experts` or `target_l0`.

    Returns:
        The trained `Dictionary`; its metadata names the data, the model, the site and the recipe.

    Raises:
        ValueError: for unknown options, or a folder with a checkpoint of another recipe.
        TrainingDiverged: when the loss becomes NaN; the last good checkpoint stays in `out`.
        LostWorker: when another process of the team is gone.

    Example:
        >>> sae = train(torch.randn(512, 8), "topk", n_latents=16, k=2, steps=5, progress=False)
        >>> sae.atoms.shape
        torch.Size([16, 8])
    """
    data = open_data(data)
    config = fit_to_data(make_config(arch, preset, options), data.d)
    team = Team.gather_up(latent_shards, device)
    if team.shards > 1 and out is None:
        raise ValueError("A dictionary in parts is put together in a folder; give `out`.")
    place = torch.device(device)
    run = choose_engine(engine, config, place, data, team)(
        data, config, None if out is None else Path(out), place, select, logger, team
    )
    quiet = not progress or not team.leads
    with tqdm(total=config.steps, initial=run.step, desc=f"train {config.family}", disable=quiet) as bar:
        for x in run.batches():
            row = run.advance(x)
            bar.update(1)
            if row is not None:
                bar.set_postfix(ev=f"{row['ev']:.3f}", l0=f"{row['l0']:.1f}", dead=f"{row['dead']:.3f}")
    return run.finish()


def choose_engine(engine: str, config: TrainConfig, device: torch.device, data, team: Team = ALONE) -> type[Run]:
    """The class of run for an engine; raises ValueError where it is unknown, or cannot make these steps."""
    if engine not in ("auto", "torch", "fused"):
        raise ValueError(f"engine={engine!r} is unknown; use 'auto', 'torch' or 'fused'.")
    fits = can_fuse(config, data)
    if team.size > 1 and engine == "torch":
        raise ValueError("engine='torch' works in one process; use 'fused' or 'auto'.")
    if (engine == "fused" or team.size > 1) and not fits:
        raise ValueError(
            f"engine='fused' cannot train {config.family!r} with these loss terms and dead_policy={config.dead_policy!r}; "
            "use engine='auto', in one process."
        )
    if team.shards > 1 and config.family == "nested_dictionary":
        raise ValueError("A nested dictionary cannot be divided by latents; use latent_shards=1.")
    if team.size == 1 and (engine == "torch" or not fits):
        return Run
    return CompiledRun if device.type == "cpu" and team.size == 1 else SparseRun


def initial(data, arch: str | None = None, *, preset: str | None = None, select=None, **options: Any) -> Dictionary:
    """The dictionary that `train` would start from: initial weights, and what depends on the data."""
    data = open_data(data)
    config = fit_to_data(make_config(arch, preset, options), data.d)
    return Run(data, config, None, torch.device("cpu"), select).dictionary.requires_grad_(False)


def open_data(data) -> ActivationStore | TensorActivations | StreamActivations:
    """Activations in any form that `train` takes, as something with `shuffled`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(data, (str, Path)):
        return ActivationStore(data)
    if isinstance(data, Tensor):
        return TensorActivations(data)
    if hasattr(data, "shuffled"):
        return data
    if isinstance(data, Iterable):
        return StreamActivations(data)
    raise ValueError(f"Cannot train on {type(data).__name__}; give a store, its folder, [N, d], or batches of it.")
