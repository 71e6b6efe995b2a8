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
from vlsae.training.fused.run import FusedRun, can_fuse
from vlsae.training.recipe import fit_to_data, make_config
from vlsae.training.run import Run, TrainingDiverged

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
    **options: Any,
) -> Dictionary:
    """Train a dictionary on activations; call again with the same arguments to continue after any interruption.

    Args:
        data: an `ActivationStore`, its folder, a tensor `[N, d]`, an iterable of such batches, in their order, or a
            `SplicedModel` for end-to-end training, or `PairedActivations` for a target other than the input.
        arch: the family, "topk", "relu", ... ; overrides the preset's.
        engine: "torch" (autograd, every family), "fused" (the same steps from the active codes alone: TopK, AbsTopK,
            BatchTopK, nested dictionaries and ReLU with L1, on the processor) or "auto", fused where it can be.
        preset: a named recipe of `vlsae.training.PRESETS` ("patchsae", "msae_rw", ...).
        out: folder of checkpoints, `train.jsonl` and the finished dictionary; nothing is written where None.
        select: bool `[n_images, n_tokens]`, the tokens of a store to train on; all where None.
        progress: show a progress bar.
        device: "cpu", "cuda", ...
        logger: "tensorboard" or "wandb" beside `train.jsonl`, where that package is installed.
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
    data = open_data(data)
    config = fit_to_data(make_config(arch, preset, options), data.d)
    place = torch.device(device)
    run = choose_engine(engine, config, place, data)(
        data, config, None if out is None else Path(out), place, select, logger
    )
    with tqdm(total=config.steps, initial=run.step, desc=f"train {config.family}", disable=not progress) as bar:
        for x in run.batches():
            row = run.advance(x)
            bar.update(1)
            if row is not None:
                bar.set_postfix(ev=f"{row['ev']:.3f}", l0=f"{row['l0']:.1f}", dead=f"{row['dead']:.3f}")
    return run.finish()


def choose_engine(engine: str, config: TrainConfig, device: torch.device, data) -> type[Run]:
    """The class of run for an engine; raises ValueError where it is unknown, or cannot make these steps."""
    if engine not in ("auto", "torch", "fused"):
        raise ValueError(f"engine={engine!r} is unknown; use 'auto', 'torch' or 'fused'.")
    fits = can_fuse(config, device, data)
    if engine == "fused" and not fits:
        raise ValueError(
            f"engine='fused' cannot train {config.family!r} with these loss terms, dead_policy={config.dead_policy!r} "
            f"and device {device}; use engine='auto'."
        )
    return FusedRun if fits and engine != "torch" else Run


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
