"""Several runs on one stream of data, in batched matrix products where their shapes allow."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.dictionaries.base import Dictionary, Trace
from vlsae.training.loop import open_data
from vlsae.training.recipe import fit_to_data, make_config
from vlsae.training.run import Run


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the given values.

    Example:
        >>> grid(k=[4, 8], seed=[0])
        [{'k': 4, 'seed': 0}, {'k': 8, 'seed': 0}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run_name(options: dict[str, Any]) -> str:
    """A folder's name for what is special about a run, such as "k=8,seed=1"."""
    return ",".join(f"{name}={value}" for name, value in options.items()) or "run"


def sweep(
    data,
    runs: Sequence[dict[str, Any]],
    *,
    out: str | Path | None = None,
    preset: str | None = None,
    select=None,
    progress: bool = True,
    device: str = "cpu",
    **shared: Any,
) -> list[Dictionary]:
    """Train several dictionaries on the same batches: every batch is read once and given to all.

    Each run is what `train` makes of its options on the same data order (`data_seed`). Runs whose encoders have one
    shape are computed as one batched product; families with another encoder run beside them.

    Args:
        data: as for `train`.
        runs: options of every run, such as `grid(seed=[0, 1], k=[8, 16])`; any field but `steps`, `batch_size` and
            `data_seed`.
        out: folder with a folder a run, named after its options; each is resumed like a run of `train`.
        preset, select, progress, device: as for `train`.
        **shared: options of all runs.

    Returns:
        The dictionaries, in the order of `runs`.

    Raises:
        ValueError: for no runs, equal runs, or runs that do not share their batches.

    Example:
        >>> pair = sweep(torch.randn(200, 8), grid(k=[1, 2]), n_latents=16, steps=3, progress=False)
        >>> [sae.k for sae in pair]
        [1, 2]
    """
    if not runs:
        raise ValueError("There are no runs; give a list of options, such as grid(k=[8, 16]).")
    names = [run_name(options) for options in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"Runs must differ; {max(names, key=names.count)!r} is there twice.")
    data, shared = open_data(data), {"data_seed": 0, **shared}
    recipes = [fit_to_data(make_config(None, preset, {**shared, **options}), data.d) for options in runs]
    for field in ("steps", "batch_size", "data_seed"):
        if len({getattr(recipe, field) for recipe in recipes}) > 1:
            raise ValueError(f"Runs of a sweep share their batches; {field} must be the same for all.")
    folders = [None if out is None else Path(out) / name for name in names]
    started = [
        Run(data, recipe, folder, torch.device(device), select) for recipe, folder in zip(recipes, folders, strict=True)
    ]
    _advance_all(started, progress)
    return [run.finish() for run in started]


def _advance_all(runs: list[Run], progress: bool) -> None:
    """Every batch to every run that has not had it yet; after an interruption some may be ahead."""
    slowest = min(runs, key=lambda run: run.step)
    with tqdm(total=slowest.config.steps, initial=slowest.step, desc=f"{len(runs)} runs", disable=not progress) as bar:
        for x, state in slowest.raw_batches():
            here = [run for run in runs if run.step == slowest.step]
            for run in here:
                run.reader = state
            advance_together(here, x)
            bar.update(1)


def advance_together(runs: list[Run], x: Tensor) -> None:
    """One step of every run on the same activations `x [B, d]`."""
    total, inputs = 0.0, [run.dictionary.transform(x) for run in runs]
    for members in _groups(runs):
        chosen = [runs[i].dictionary for i in members]
        traces = (
            stacked_traces(chosen, inputs[members[0]])
            if len(members) > 1
            else [runs[members[0]].trace(inputs[members[0]])]
        )
        for i, trace in zip(members, traces, strict=True):
            total = total + runs[i].loss(inputs[i], trace)
    for run in runs:
        run.optimizer.zero_grad()
    total.backward()
    for run in runs:
        run.update()


def _groups(runs: list[Run]) -> Iterator[list[int]]:
    """Numbers of the runs that one batched product can serve: linear encoders of one shape on one input."""
    shapes: dict[Any, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        sae = run.dictionary
        plain = all(getattr(type(sae), name) is getattr(Dictionary, name) for name in ("trace", "pre", "_decode"))
        shapes[(sae.n_latents, sae.transform.kind) if plain else number].append(number)
    yield from shapes.values()


def stacked_traces(dictionaries: Sequence[Dictionary], x: Tensor) -> list[Trace]:
    """The training passes of linear dictionaries of one shape, `x [B, d]` given to all, in two batched products."""
    b_dec = torch.stack([sae.b_dec for sae in dictionaries])[:, None]
    b_enc = torch.stack([sae.b_enc for sae in dictionaries])[:, None]
    pre = torch.baddbmm(b_enc, x - b_dec, torch.stack([sae.W_enc for sae in dictionaries]))
    z = torch.stack([sae.activate(p) for sae, p in zip(dictionaries, pre, strict=True)])
    xhat = torch.baddbmm(b_dec, z, torch.stack([sae.W_dec for sae in dictionaries]))
    return [Trace(*parts) for parts in zip(pre, z, xhat, strict=True)]
