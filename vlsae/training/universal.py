"""Training of universal dictionaries: runs, one a model, whose codes every decoder must read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.activations.format import StoreError
from vlsae.activations.paired import same_images
from vlsae.activations.reader import ActivationStore
from vlsae.dictionaries.base import Trace
from vlsae.dictionaries.universal import UniversalDictionary
from vlsae.training.checkpoint import read_joint_checkpoint, write_joint_checkpoint
from vlsae.training.loop import open_data
from vlsae.training.recipe import fit_to_data, make_config
from vlsae.training.run import Run


def train_universal(
    data: Mapping[str, ActivationStore | Tensor | str | Path],
    arch: str | None = None,
    *,
    update: str = "all",
    preset: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    device: str = "cpu",
    **options: Any,
) -> UniversalDictionary:
    """Train dictionaries of several models, or modalities, to share their latents; call again to continue.

    `L_i = sum_j L(x_j, Enc_i(x_i) D_j)` (arXiv 2502.03714) with the loss terms of the recipe for every
    decoder j; with one model this is `train`, number for number.

    Args:
        data: activations of the same tokens by model: tensors `[N, d_i]`, or stores of the same images and tokens
            (`vlsae.activations.common_grid` makes them of models with other patch grids).
        arch: the family of every part; "batch_norm_topk" is the published one.
        update: "sampled", as published: a random model i encodes, and only encoder i and decoder i are stepped;
            "all": every model encodes, and everything is stepped on `sum_i L_i / M`.
        preset: a recipe, such as "usae".
        out: folder of the checkpoint, from which the same call continues after any interruption, and of the finished
            dictionaries; nothing is written where None.
        progress: show a progress bar.
        device: "cpu", "cuda", ...
        **options: as for `train`; `loss_scale="absolute"` is the published L1 loss.

    Returns:
        A `UniversalDictionary` with a part a model.

    Raises:
        ValueError: for an unknown `update` or option, no `n_latents`, resampling, which would tear latents apart, or a folder
            with a checkpoint of other models, data or another recipe.
        StoreError: for data that do not hold the same tokens.
        TrainingDiverged: when a loss becomes NaN.

    Example:
        >>> x = torch.randn(256, 8)
        >>> pair = train_universal({"a": x, "b": x[:, :5]}, "topk", n_latents=16, k=2, steps=3, progress=False)
        >>> pair["b"].atoms.shape
        torch.Size([16, 5])
    """
    if update not in ("all", "sampled"):
        raise ValueError(f"update={update!r} is unknown; use 'all' or 'sampled'.")
    sources = {name: open_data(values) for name, values in data.items()}
    _require_same_tokens(sources)
    config = make_config(arch, preset, options)
    if not config.n_latents or config.dead_policy == "resample" or config.option("sort_latents", False):
        raise ValueError(
            f"n_latents={config.n_latents}, dead_policy={config.dead_policy!r}: models share their latents; give a number "
            "of them, and neither resample nor sort."
        )
    place = torch.device(device)
    runs = {name: Run(source, fit_to_data(config, source.d), None, place, None) for name, source in sources.items()}
    _advance_all(runs, update, None if out is None else Path(out), progress)
    universal = UniversalDictionary({name: run.finish() for name, run in runs.items()})
    if out is not None:
        universal.save(out)
    return universal


def _advance_all(named: Mapping[str, Run], update: str, out: Path | None, progress: bool) -> None:
    """The steps that are left, with one checkpoint of all runs: theirs alone could end at other steps."""
    runs = list(named.values())
    config, draws = runs[0].config, torch.Generator().manual_seed(runs[0].config.seed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _continue(named, update, draws, out)
    batches = zip(*(run.batches() for run in runs), strict=True)
    first = runs[0].step
    for step in tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=f"train {len(runs)} models",
        disable=not progress,
    ):
        xs = next(batches)
        drawn = int(torch.randint(len(runs), (), generator=draws))
        _advance(runs, xs, range(len(runs)) if update == "all" else [drawn])
        if out is not None and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps):
            for run in runs:
                run.require_finite_weights()
            write_joint_checkpoint(out, named, {"update": update, "draws": draws.get_state()})


def _continue(runs: Mapping[str, Run], update: str, draws: torch.Generator, out: Path) -> None:
    """Put runs and draws where the folder's checkpoint is, if there is one."""
    about = read_joint_checkpoint(out, runs)
    if about is None:
        return
    if about["update"] != update:
        raise ValueError(
            f"{out} holds a run of another recipe (update: {about['update']!r} there, {update!r} now); use another folder."
        )
    draws.set_state(about["draws"])


def _require_same_tokens(sources: Mapping[str, Any]) -> None:
    if not sources:
        raise StoreError("There are no activations; give at least one model's, by name.")
    (first, one), *others = sources.items()
    for name, other in others:
        alike = isinstance(one, ActivationStore) == isinstance(other, ActivationStore)
        if not alike or len(one) != len(other):
            raise StoreError(
                f"{first!r} is {len(one)} tokens in a {type(one).__name__}, {name!r} {len(other)} in a "
                f"{type(other).__name__}; give the same tokens in the same form, to be read in one order. Models with other "
                "patch grids are brought to one by vlsae.activations.common_grid."
            )
        if isinstance(one, ActivationStore):
            same_images(one, other)


def _advance(runs: list[Run], xs: tuple[Tensor, ...], encoders: range | list[int]) -> None:
    """One step: the models `encoders` encode, all decode, and only `encoders` are stepped."""
    traces = {i: runs[i].dictionary.trace(xs[i]) for i in encoders}
    losses = [
        runs[j].loss(xs[j], Trace(traces[i].pre, traces[i].z, runs[j].dictionary._decode(traces[i].z)), runs[i].dead)
        for i in encoders
        for j in range(len(runs))
        if i != j
    ]
    losses += [runs[i].loss(xs[i], traces[i]) for i in encoders]  # last: a run counts the codes of its own encoder
    for run in runs:
        run.optimizer.zero_grad()
    (sum(losses) / len(encoders)).backward()
    for i, run in enumerate(runs):
        if i in encoders:
            run.update()
        else:
            run.step += 1  # the learning rate follows the steps of all
