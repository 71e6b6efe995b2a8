"""A file or folder that may hold a dictionary: its weights, and the configuration beside them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vlsae.dictionaries.hub import WEIGHT_SUFFIXES
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.pickles import PickleError, leaves
from vlsae.stored import all_finite
from vlsae.weight_files import Stored, WeightFileError, json_object, read_content, read_json

WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "ae.pt", "sae.pt", "params.npz", "model.safetensors")
CONFIGS = ("cfg.json", "config.json", "hyperparams.json")
HEADER_AT_MOST = 2**20  # bytes of a first line of JSON


class Source:
    """A checkpoint as it lies on disk; everything is read when first asked for, tensors only by `tensor`.

    Args:
        path: a weight file, or a folder with one.

    Attributes:
        path: as given; folder: where it lies; weights: the weight file.

    Raises:
        DialectError: for a path that does not exist, or a folder without a weight file or with several unknown ones.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            if not (self.path.is_file() or self.path.is_dir()):
                raise DialectError(
                    f"{self.path} does not exist; give a checkpoint's file or folder, or user/repository."
                )
            self.folder = self.path if self.path.is_dir() else self.path.parent
            self.weights = _weight_file(self.path) if self.path.is_dir() else self.path
        except OSError as error:
            raise DialectError(f"{self.path} cannot be looked into: {error}.") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """The JSON configuration in the same folder; empty where there is none."""
        for name in CONFIGS:
            if (self.folder / name).is_file():
                return self.json(name)
        return {}

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the same folder; empty where it does not exist."""
        path = self.folder / name
        return _clearly(read_json, path) if path.is_file() else {}

    @cached_property
    def header(self) -> dict[str, Any]:
        """The first line, where the file begins with one of JSON (saev); else empty."""
        try:
            with open(self.weights, "rb") as file:
                line = file.readline(HEADER_AT_MOST) if file.peek(1)[:1] == b"{" else b""
        except OSError as error:
            raise DialectError(f"{self.weights} cannot be read: {error}.") from error
        return _clearly(json_object, line, self.weights) if line else {}

    @property
    def content(self) -> Any:
        """What the weight file holds: nested dictionaries, plain values, `Stored` tensors and `Inert` objects."""
        return self._content_and_values[0]

    @property
    def values(self) -> dict[str, Any]:
        """The same, flat: values and `Stored` tensors by dotted names, at most a few hundred thousand."""
        return self._content_and_values[1]

    @cached_property
    def _content_and_values(self) -> tuple[Any, dict[str, Any]]:
        """Both at once: what cannot be made flat may be nested without end, and is not given to anyone."""
        classes = [name for dialect in DIALECTS for name in DIALECTS.get(dialect).classes]
        content = _clearly(read_content, self.weights, classes)
        try:
            return content, dict(leaves(content))
        except PickleError as error:
            raise DialectError(f"{self.weights}: {error}; no dictionary does.") from error

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors by dotted names, without reading them."""
        return {name: value.shape for name, value in self.values.items() if isinstance(value, Stored)}

    def has(self, *names: str) -> bool:
        """Whether tensors of all these names are there."""
        return all(name in self.shapes for name in names)

    def only(self, *names: str) -> bool:
        """Whether the tensors are exactly these."""
        return set(self.shapes) == set(names)

    def tensor(self, name: str) -> Tensor:
        """One tensor as float32 (whole numbers as they are), looked at for values that are not finite.

        Raises:
            DialectError: for a tensor that is missing, or holds values that are not finite in float32.
        """
        if name not in self.shapes:
            raise DialectError(
                f"{self.weights} has no tensor {name!r}; it has {', '.join(list(self.shapes)[:20]) or 'none'}."
            )
        tensor = _clearly(self.values[name].read)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        single = tensor if tensor.is_complex() else tensor.float()
        if single.is_complex() or not all_finite(single):
            raise DialectError(
                f"{self.weights}: {name} holds NaN, infinite or complex values; the run that wrote it failed."
            )
        return single

    def number(self, name: str) -> float | int:
        """A scalar: a plain value, or a tensor of one element."""
        value = self.tensor(name) if name in self.shapes else self.values.get(name)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e38:
            raise DialectError(f"{self.weights}: {name} is no number; expected one.")
        return value


def _weight_file(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.is_file())
    if len(found) != 1:
        held = ", ".join(p.name for p in (found or sorted(folder.iterdir()))[:8]) or "nothing"
        raise DialectError(
            f"{folder} has {len(found)} weight files ({held}); give the path of one, or of another folder."
        )
    return found[0]


def _clearly(read, *args):
    try:
        return read(*args)
    except WeightFileError as error:
        raise DialectError(str(error)) from error
