"""Files of learned weights as named tensors; a pickle is never executed."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlsae.adaptation.checkpoint import AdaptationError

_DTYPES = (np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Float16DType, np.dtypes.Int64DType,
           np.dtypes.Int32DType, np.dtypes.BoolDType)  # fmt: skip
_SCALAR = np.float64(0).__reduce__()[0]  # their constructor, whose module numpy has renamed
# scores beside the weights are often numpy scalars
NUMPY_SCALARS = [
    np.dtype,
    *_DTYPES,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_file(path: Path) -> dict[str, Any]:
    """Everything in a weight file, by dotted names; a file that is one bare tensor has the name "".

    Raises:
        AdaptationError: for a file that is damaged, holds no weights, or could run code.
    """
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise AdaptationError(
                f"{path} is no whole safetensors file ({error}); download or write it again."
            ) from error
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise AdaptationError(_why(path, str(error))) from error
    return flat(held)


def _why(path: Path, message: str) -> str:
    needs = re.search(r"GLOBAL (\S+)", message)
    if needs is None:
        return (
            f"{path} is no whole weight file ({message.splitlines()[0][:150] if message else 'it is empty'}); download or "
            "write it again."
        )
    return (
        f"{path} holds a Python object, {needs[1]}, and opening it would run code of whoever wrote the file; only tensors, "
        "plain values and numpy scalars are read. If you trust its source, convert it once: "
        "found = torch.load(file, weights_only=False); torch.save({'state_dict': found['state_dict']}, 'weights.pt') - of a "
        "pickled module, torch.save({'state_dict': found.state_dict()}, 'weights.pt')."
    )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(value, Mapping):
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
            parts = sorted(set(_json(index)["weight_map"].values()))
            return {key: value for part in parts for key, value in read_file(folder / part).items()}
    raise AdaptationError(f"{folder} has a configuration but none of the weight files {', '.join(names)}.")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdaptationError(f"{path} is no whole JSON file ({error}); download or write it again.") from error


def _cache(folder: Path) -> dict[str, Any]:
    """Tip-Adapter's raw tensors under the names of their files, `keys_16shots`, `values_16shots`, `best_F_16shots`."""
    files = [p for kind in ("keys", "values", "best_F") for p in sorted(folder.glob(f"{kind}_*shots.pt"))]
    return {name: value for p in files for name, value in {p.stem: read_file(p).get("")}.items()}
