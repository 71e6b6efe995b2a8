"""Dictionaries on disk in SAELens' tensor convention, with our extra facts under `metadata.vlsae`."""

from __future__ import annotations

import inspect
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlsae import __version__
from vlsae.atomic import replacing
from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.pickles import leaves
from vlsae.stored import ALIGNED, WeightFileError, all_finite, memory, shortened
from vlsae.weight_files import read_content, read_json

SCHEMA = 1
FACTS = {"schema", "version", "family", "settings", "input_transform"}  # of metadata.vlsae; the rest is free
ARCHITECTURES = {  # of families that SAELens can open
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "nested_dictionary": "jumprelu",
    "nested_sparsity": "standard",
}
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


def architecture(dictionary: Dictionary) -> str:
    """SAELens' name of the architecture; one that SAELens refuses where it would lose something without a word."""
    if dictionary.transform.kind != "none":
        return f"{dictionary.family}+{dictionary.transform.kind}"
    if dictionary.settings.get("cut"):
        return f"{dictionary.family}+cut"
    return ARCHITECTURES.get(dictionary.family, dictionary.family)


class CheckpointError(ValueError):
    """A dictionary folder that is missing, damaged, or of another format."""

    def __init__(self, message: str):
        super().__init__(shortened(message))


def save_dictionary(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write a dictionary as `cfg.json` and `sae_weights.safetensors`; each file is replaced in one step.

    Args:
        dictionary: any registered family.
        folder: created if needed.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in dictionary.state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    return _write_config(folder, _description(dictionary))


def save_in_parts(parts: Iterable[dict[str, Tensor]], like: Dictionary, n_latents: int, folder: str | Path) -> Path:
    """Write a dictionary of which every process has a part, as `save_dictionary` would write the whole.

    One tensor of one part is in memory at a time, so that the whole may be larger than that.

    Args:
        parts: `state_dict`s of the parts, in the order of their latents, float32.
        like: a dictionary that holds one part, for everything but its latents.
        n_latents: of the whole.
        folder: created if needed.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    axes, header, size = like.latent_axis, {"__metadata__": {"format": "pt"}}, 0
    for name, value in sorted(like.state_dict().items()):
        shape = list(value.shape)
        if name in axes:
            shape[axes[name]] = n_latents
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [size, size + 4 * math.prod(shape)]}
        size = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(folder / WEIGHTS) as partial:
        with open(partial, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size)
        begin = 0
        for part in parts:
            end = begin + part["W_dec"].shape[0]
            for name, value in part.items():
                where = 8 + len(text) + header[name]["data_offsets"][0]
                whole = np.memmap(partial, "<f4", "r+", where, tuple(header[name]["shape"]))
                at = tuple(slice(begin, end) if axes.get(name) == i else slice(None) for i in range(value.ndim))
                whole[at] = value.cpu().numpy()
                whole.flush()
            begin = end
        if begin != n_latents:
            raise CheckpointError(f"The parts hold {begin} latents; expected {n_latents}. Nothing was written.")
    return _write_config(folder, _description(like) | {"d_sae": n_latents})


def _write_config(folder: Path, description: dict) -> Path:
    with replacing(folder / CONFIG) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return folder


def _description(dictionary: Dictionary) -> dict:
    """What `cfg.json` says."""
    return {
        "architecture": architecture(dictionary),
        "d_in": dictionary.d,
        "d_sae": dictionary.n_latents,
        "dtype": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **({"rescale_acts_by_decoder_norm": False} if dictionary.family == "topk" else {}),
        **dictionary.settings,
        "metadata": {
            "sae_lens_version": "6.0.0",  # the generation of the format; SAELens converts anything older
            "model_name": dictionary.metadata.get("model"),
            "hook_name": dictionary.metadata.get("site"),
            "vlsae": {
                **{name: value for name, value in dictionary.metadata.items() if name not in FACTS},
                "schema": SCHEMA,
                "version": __version__,
                "family": dictionary.family,
                "settings": dictionary.settings,
                "input_transform": dictionary.transform.kind,
            },
        },
    }


def load_dictionary(folder: str | Path, device: str = "cpu") -> Dictionary:
    """Read a dictionary that `save` wrote; `vlsae.load_dictionary` also reads those of others.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        device: where its weights go.

    Returns:
        The dictionary, equal bit for bit to what was saved.

    Raises:
        CheckpointError: for a missing, truncated or foreign folder, naming the field that is wrong.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} is no dictionary: {name} is missing; give a folder written by save().")
    try:
        config = read_json(folder / CONFIG)
        stored = read_content(folder / WEIGHTS)
        facts = _facts(config, folder / CONFIG)
        values = sum(math.prod(part.shape) for part in stored.values())
        sizes = [config["d_in"], config["d_sae"]]
        if any(type(n) is not int or not 1 <= n <= values for n in sizes):
            raise CheckpointError(f"{folder / CONFIG} says d_in, d_sae = {sizes}; {WEIGHTS} holds {values:,} numbers.")
        weights = {name: part.read() for name, part in stored.items()}
    except WeightFileError as error:
        raise CheckpointError(str(error)) from error
    try:
        dictionary = assemble(facts["family"], *sizes, facts["settings"], facts["input_transform"], weights)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    dictionary.metadata = {k: v for k, v in facts.items() if k not in FACTS}
    return dictionary.to(torch.device(device))


def _facts(config: dict, path: Path) -> dict:
    """Our own part of a configuration."""
    metadata = config.get("metadata")
    facts = metadata.get("vlsae") if isinstance(metadata, dict) else None
    if not isinstance(facts, dict):
        raise CheckpointError(
            f"{path} has no metadata.vlsae: it was written by another program; use vlsae.load_dictionary."
        )
    missing = FACTS - {"version"} - set(facts)
    if missing or not {"d_in", "d_sae"} <= set(config):
        raise CheckpointError(f"{path} misses {sorted(missing) or 'd_in or d_sae'}; save it again.")
    if facts["schema"] != SCHEMA:
        raise CheckpointError(f"{path} has schema {facts['schema']}; this version reads {SCHEMA}.")
    return facts


def assemble(
    family: str, d: int, n_latents: int, settings: Mapping[str, Any], transform: str, weights: Mapping[str, Tensor]
) -> Dictionary:
    """A dictionary around given weights, without drawing initial ones.

    Args:
        family: by its registered name.
        d, n_latents: its size.
        settings: constructor arguments.
        transform: kind of its input transform.
        weights: exactly the tensors of its `state_dict`, of one precision; the dictionary may take them over.

    Raises:
        CheckpointError: for settings that the family refuses, tensors of other names, shapes or kinds, or values that are not
            finite.
    """
    largest = sum(value.numel() for value in weights.values())
    try:
        numbers = [n for _, n in leaves(dict(settings)) if isinstance(n, (int, float))]
        if not all(math.isfinite(n) and (isinstance(n, float) or abs(n) <= max(largest, 1)) for n in numbers):
            raise ValueError(f"{settings} are larger than the weights")
        kind = DICTIONARIES.get(family)
        _check_kinds(kind, settings)
        with torch.device("meta"):  # shapes alone: what a file promises is not allocated
            dictionary = kind(d, n_latents, **settings)
            dictionary.transform = InputTransform(d, transform)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(f"the settings do not fit {family!r}: {error}.") from error
    expected = dictionary.state_dict()
    wrong = sorted(name for name in {*expected, *weights} if _kind(expected.get(name)) != _kind(weights.get(name)))
    if wrong:
        pairs = (f"{n[:100]} is {_kind(weights.get(n))}, expected {_kind(expected.get(n))}" for n in wrong[:6])
        raise CheckpointError(f"its tensors do not fit: {'; '.join(pairs)}.")
    lost = sorted(name for name, value in weights.items() if not all_finite(value))
    if lost:
        raise CheckpointError(f"{', '.join(lost)[:200]} holds NaN or infinite values; the run that wrote it failed.")
    taken: set[int] = set()
    ours = {name: _laid_out(value, expected[name], taken) for name, value in weights.items()}
    dictionary.load_state_dict(ours, assign=True)
    dtypes = [w.dtype for w in weights.values() if w.is_floating_point()]
    return dictionary.to(dtypes[0]) if dtypes else dictionary


def _check_kinds(family: type[Dictionary], settings: Mapping[str, Any]) -> None:
    """Refuse settings that are not of the kind that the constructor says, such as a k of 2.5."""
    kinds = {"int": int, "float": (int, float), "bool": bool, "str": str}
    for name, parameter in inspect.signature(family.__init__).parameters.items():
        wanted, value = kinds.get(parameter.annotation), settings.get(name)
        if (
            name in settings
            and wanted
            and (not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool))
        ):
            raise ValueError(f"{name}={value!r} is no {parameter.annotation}")


def _kind(tensor: Tensor | None) -> str:
    """Shape and kind of numbers, for comparison and messages."""
    if tensor is None:
        return "missing"
    return f"{list(tensor.shape)} {'real' if tensor.is_floating_point() else tensor.dtype}"


def _laid_out(tensor: Tensor, like: Tensor, taken: set[int]) -> Tensor:
    """The tensor in the order of memory that the family uses, on which the last bits of products depend.

    It is copied unless it has that order and memory of its own, which nothing in `taken` begins at; then it is `taken`.
    """
    begin, alone = tensor.data_ptr(), tensor.untyped_storage().nbytes() == tensor.nbytes
    if tensor.stride() == like.stride() and alone and begin % ALIGNED == 0 and begin not in taken:
        taken.add(begin)
        return tensor.detach()
    room = torch.from_numpy(memory(tensor.nbytes)).view(tensor.dtype)
    copy = room.as_strided(like.shape, like.stride())
    order = sorted(
        range(like.ndim), key=like.stride, reverse=True
    )  # torch turns matrices fast into contiguous ones only
    copy.permute(order).copy_(tensor.permute(order))
    return copy
