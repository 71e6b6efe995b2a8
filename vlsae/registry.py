"""One small registry: a folder's files register what they hold, and a name finds it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any


class Registry:
    """Named parts of one kind, discovered by importing every module of a package on first use.

    Args:
        kind: what the parts are, for messages ("dictionary").
        package: dotted name of the package whose modules register parts.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._parts: dict[str, Any] = {}
        self._discovered = False

    def register(self, name: str):
        """Decorator that files a class or function under `name`; a name is taken once."""

        def add(part):
            if name in self._parts:
                raise ValueError(f"A {self.kind} named {name!r} is registered already; choose another name.")
            self._parts[name] = part
            return part

        return add

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._discovered = True

    def get(self, name: str):
        """The part called `name`; an unknown name raises a ValueError that lists the known ones."""
        self._discover()
        if name not in self._parts:
            raise ValueError(f"Unknown {self.kind} {name!r}; known are {', '.join(self)}.")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._parts))
