"""A torch module in a file: a state dict, one inside a training checkpoint, or a whole pickled module read as data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlsae.interop.source import Source
from vlsae.pickles import Global, Inert
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

    def kind(self, path: str = "") -> str | None:
        """The class of a pickled module by its path ("encoder.final_block.1"); None in a state dict."""
        value = self.source.content
        for part in f"{self.prefix}{path}".split("."):
            if part and isinstance(value, Inert):
                value = value.state.get("_modules")
            if part:
                value = value.get(part) if isinstance(value, dict) else None
        return value.name.rpartition(".")[2] if isinstance(value, Inert) else None
