"""A torch module in a file: a state dict, one inside a training checkpoint, or a whole pickled module read as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlsae.interop.source import Source
from vlsae.pickles import Global, Inert, parts
from vlsae.weight_files import Stored

HOLDERS = ("_modules", "_parameters", "_buffers")  # where a pickled module keeps what a state dict names directly


def names(source: Source) -> dict[str, str]:
    """The names of a file's values as a state dict has them, whether modules were pickled or not, to its own names."""
    return {".".join(part for part in name.split(".") if part not in HOLDERS): name for name in source.values}


class SavedModule:
    """Tensors, plain attributes and classes of one module, by the dotted names of its state dict.

    Args:
        source: the file.
        prefix: of the module's names in it: "" or such as "model_state_dict.".

    Attributes:
        shapes: of its tensors, parameters and buffers as well as tensors that are plain attributes, by name.
    """

    def __init__(self, source: Source, prefix: str = ""):
        self.source, self.prefix = source, prefix
        self._names = {name[len(prefix) :]: own for name, own in names(source).items() if name.startswith(prefix)}
        self.shapes = {name: source.shapes[own] for name, own in self._names.items() if own in source.shapes}

    def has(self, *names: str) -> bool:
        """Whether tensors of all these names are there."""
        return all(name in self.shapes for name in names)

    def tensor(self, name: str) -> Tensor:
        """One tensor, as `Source.tensor` gives it."""
        return self.source.tensor(self._names.get(name, self.prefix + name))

    def number(self, name: str) -> float | int:
        """A scalar, as `Source.number` gives it."""
        return self.source.number(self._names.get(name, self.prefix + name))

    def value(self, name: str) -> Any:
        """A plain attribute of a pickled module: a number, a text, the name of a function; None where there is none."""
        own = self._names.get(name)
        found = self.source.values[own] if own is not None else None
        if isinstance(found, Stored):
            return self.tensor(name).item() if found.shape in ((), (1,)) else None
        return found.name.rpartition(".")[2] if isinstance(found, Global) else found

    def dtype(self, name: str) -> torch.dtype:
        """How a tensor is stored."""
        return self.source.values[self.own_name(name)].dtype

    def own_name(self, name: str) -> str:
        """A tensor's name in the file."""
        return self._names[name]

    def object(self, path: str = "") -> Any:
        """What lies at a path ("encoder.final_block.1"): of a pickled module an `Inert`; None where there is nothing."""
        return _at(self.source.content, ".".join(part for part in (self.prefix.rstrip("."), path) if part))

    def kind(self, path: str = "") -> str | None:
        """The class of a pickled module by its path; None in a state dict."""
        value = self.object(path)
        return value.name.rpartition(".")[2] if isinstance(value, Inert) else None


def _at(value: Any, path: str) -> Any:
    """What lies at a dotted path; keys of a file may have dots of their own."""
    if not path:
        return value
    for key, inner in parts(value) or ():
        name = str(key)
        rest = path if name in HOLDERS else path.removeprefix(name).removeprefix(".")
        if name in HOLDERS or path == name or path.startswith(f"{name}."):
            found = _at(inner, rest)
            if found is not None:
                return found
    return None
