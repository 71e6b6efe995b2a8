"""A run on disk: one file, or one a part of the dictionary, from which any number of processes can go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlsae.activations.reader import ReaderState
from vlsae.activations.stream import StreamActivations
from vlsae.atomic import replacing

if TYPE_CHECKING:
    from vlsae.training.run import Run

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(run: Run) -> None:
    """Replace the checkpoint in the run's folder, in one step; files of parts are written before, old ones then removed."""
    shards = run.team.shards
    state = _state(run) | {
        "parts": [f"checkpoint-{run.step}.{s}-of-{shards}.pt" for s in range(shards)] if shards > 1 else []
    }
    own = _own_state(run)
    if shards > 1:
        if run.team.rank < shards:
            with replacing(run.out / state["parts"][run.team.shard]) as partial:
                torch.save(own, partial)
        own = {}
        run.team.wait()
    if run.team.leads:
        with replacing(run.out / CHECKPOINT) as partial:
            torch.save(state | own, partial)
        current = {run.out / name for name in state["parts"]}
        for old in {*run.out.glob("checkpoint-*.pt"), *run.out.glob(".partial-*checkpoint*")} - current:
            old.unlink(missing_ok=True)  # earlier checkpoints, and what killed processes left
    run.team.wait()


def _state(run: Run) -> dict:
    """What all processes of a run have in common."""
    return {
        "config": asdict(run.config),
        "objectives": {objective.name: objective.state for objective in run.objectives},
        "step": run.step,
        "tokens_seen": run.tokens_seen,
        "data": run.fingerprint,
        "reader": [run.reader.seed, run.reader.rank, run.reader.position],
    }


def _own_state(run: Run) -> dict:
    """What belongs to this process's latents."""
    return {
        "dictionary": run.dictionary.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "silent": run.silent,
    }


def read_checkpoint(run: Run) -> None:
    """Put a run where its folder's checkpoint is, if there is one.

    Raises:
        ValueError: for a checkpoint of another recipe or of other data.
    """
    path = run.out / CHECKPOINT
    if not path.exists():
        return
    whole = run.team.shards == 1
    state = torch.load(path, weights_only=True, map_location=run.device) if whole else _load_part(path)
    if "runs" in state:
        raise ValueError(f"{run.out} holds models trained together ({', '.join(state['runs'])}); use another folder.")
    _require_same_run(run, state, run.out)
    parts = [_load_part(run.out / name) for name in state.get("parts", [])]
    if parts or not whole:
        own = _own_part(run, parts or [state])
    else:
        own = state
    _restore(run, state, own)


def _require_same_run(run: Run, state: dict, folder: Path) -> None:
    """Raises ValueError for the state of another recipe or of other data."""
    now = asdict(run.config)
    changed = [
        f"{k}: {state['config'].get(k)!r} there, {v!r} now" for k, v in now.items() if state["config"].get(k) != v
    ]
    if changed:
        raise ValueError(f"{folder} holds a run of another recipe ({'; '.join(changed)}); use another folder.")
    if isinstance(run.data, StreamActivations) and run.data.once:
        raise ValueError(f"{folder} holds a run that a stream read once cannot continue; use another folder.")
    if state["data"] != run.fingerprint:
        raise ValueError(f"{folder} holds a run on other data ({state['data']}); use another folder.")


def _restore(run: Run, state: dict, own: dict) -> None:
    run.dictionary.load_state_dict(own["dictionary"])
    run.optimizer.load_state_dict(own["optimizer"])
    for objective in run.objectives:
        objective.state = state["objectives"][objective.name]
    run.silent, run.step, run.tokens_seen = own["silent"].to(run.device), state["step"], state["tokens_seen"]
    run.reader = ReaderState(*state["reader"])


def write_joint_checkpoint(folder: Path, runs: Mapping[str, Run], about: dict) -> None:
    """Replace the one checkpoint of runs that step together, so that no two of them are ever at other steps.

    Args:
        folder: where it is; it must exist.
        runs: of one process, by name.
        about: what else has to be the same when the runs are continued, or is needed for it; `torch.load` must read it.
    """
    with replacing(folder / CHECKPOINT) as partial:
        torch.save(
            {"about": about, "runs": {name: _state(run) | _own_state(run) for name, run in runs.items()}}, partial
        )


def read_joint_checkpoint(folder: Path, runs: Mapping[str, Run]) -> dict | None:
    """Put all runs where the folder's joint checkpoint is, and return its `about`; None where there is none.

    Raises:
        ValueError: for a checkpoint of other runs, another recipe or other data.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    saved = torch.load(path, weights_only=True, map_location="cpu")
    if list(saved.get("runs", {})) != list(runs):
        there = ", ".join(saved.get("runs", {})) or "a single run"
        raise ValueError(f"{folder} holds {there}, not {', '.join(runs)}; use another folder.")
    for name, run in runs.items():
        _require_same_run(run, saved["runs"][name], folder)
    for name, run in runs.items():
        _restore(run, saved["runs"][name], saved["runs"][name])
    return saved["about"]


def weights_of_parts(folder: Path) -> Iterator[dict[str, Tensor]]:
    """The weights of every part of a checkpoint, mapped into memory only."""
    state = _load_part(folder / CHECKPOINT)
    for part in [_load_part(folder / name) for name in state.get("parts", [])] or [state]:
        yield part["dictionary"]


def _load_part(path: Path) -> dict:
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")


def _own_part(run: Run, parts: list[dict]) -> dict:
    """This process's latents, from parts that divide the latents in another way."""
    own, axes = run.team.own_latents(run.config.n_latents), run.dictionary.latent_axis
    dictionary = {
        name: _cut_out([part["dictionary"][name] for part in parts], axes.get(name), own)
        for name in parts[0]["dictionary"]
    }
    names = [name for name, _ in run.dictionary.named_parameters()]
    optimizer = {
        "param_groups": parts[0]["optimizer"]["param_groups"],
        "state": {
            number: {
                key: _cut_out([part["optimizer"]["state"][number][key] for part in parts],
                              axes.get(names[number]) if key != "step" else None, own)
                for key in values
            }
            for number, values in parts[0]["optimizer"]["state"].items()
        },
    }  # fmt: skip
    return {
        "dictionary": dictionary,
        "optimizer": optimizer,
        "silent": _cut_out([part["silent"] for part in parts], 0, own),
    }


def _cut_out(parts: list[Tensor], axis: int | None, own: slice) -> Tensor:
    """Latents `own` of tensors that follow each other along `axis`, laid out latent by latent as they are."""
    if axis is None:
        return parts[0].clone()
    begin, pieces = 0, []
    for part in (part.movedim(axis, 0) for part in parts):
        pieces.append(part[max(0, own.start - begin) : max(0, own.stop - begin)])
        begin += len(part)
    return torch.cat(pieces).movedim(0, axis)
