"""Files of learned weights as named tensors; a pickle is never executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.pickles import PickleError, leaves
from vlsae.stored import Stored, WeightFileError
from vlsae.weight_files import read_content, read_json


def read_file(path: Path) -> dict[str, Any]:
    """Everything in a weight file, by dotted names; a file that is one bare tensor has the name "".

    Raises:
        AdaptationError: for a file that is damaged, holds no weights, or could run code.
    """
    try:
        content = read_content(path)
        for _ in leaves(content):  # refuses what is nested without end
            pass
        return {name: value.read() if isinstance(value, Stored) else value for name, value in flat(content).items()}
    except WeightFileError as error:
        raise AdaptationError(str(error)) from error
    except PickleError as error:
        raise AdaptationError(f"{path}: {error}; learned weights do not.") from error


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names; lists, which hold facts and no weights, stay as they are."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: part for found in parts for key, part in found.items()}


def read_folder(folder: Path) -> dict[str, Any]:
    """The weights of a folder and its `adapter_config.json` or `config.json`, or those of a few-shot cache.

    Raises:
        AdaptationError: where it holds none, or several.
    """
    if any(folder.glob("keys_*shots.pt")):
        return _cache(folder)
    for config in ("adapter_config.json", "config.json", "open_clip_config.json"):
        if (folder / config).exists():
            return {**_weights(folder), "config": _json(folder / config)}
    files = sorted(p for p in folder.iterdir() if re.search(r"\.(pt|pth|bin|safetensors|tar(-\d+)?)$", p.name))
    if len(files) != 1:
        raise AdaptationError(
            f"{folder} has {len(files)} weight files ({', '.join(p.name for p in files[:5]) or 'none'}); give the path of one."
        )
    return read_file(files[0])


def _weights(folder: Path) -> dict[str, Any]:
    names = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "open_clip_model.safetensors",
             "pytorch_model.bin", "open_clip_pytorch_model.bin")  # fmt: skip
    for name in names:
        if (folder / name).exists():
            return read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            return {key: value for part in _parts(index) for key, value in read_file(folder / part).items()}
    raise AdaptationError(f"{folder} has a configuration but none of the weight files {', '.join(names)}.")


def _parts(index: Path) -> list[str]:
    """The names of the files over which weights are spread."""
    places = _json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise AdaptationError(f"{index} does not name files of its folder under weight_map; download it again.")
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except WeightFileError as error:
        raise AdaptationError(str(error)) from error


def _cache(folder: Path) -> dict[str, Any]:
    """Tip-Adapter's raw tensors under the names of their files, `keys_16shots`, `values_16shots`, `best_F_16shots`."""
    files = [p for kind in ("keys", "values", "best_F") for p in sorted(folder.glob(f"{kind}_*shots.pt"))]
    return {name: value for p in files for name, value in {p.stem: read_file(p).get("")}.items()}
