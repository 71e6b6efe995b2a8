"""What a dialect is: another project's way of writing a dictionary to disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.checkpoint import CheckpointError
from vlsae.registry import Registry

if TYPE_CHECKING:
    from vlsae.interop.answers import Answers
    from vlsae.interop.source import Source

DIALECTS = Registry("dialect", "vlsae.interop.dialects")


class DialectError(CheckpointError):
    """A dictionary that cannot be opened, or that another project's format cannot express."""


class Dialect:
    """One project's checkpoints; a sub-class is registered under `DIALECTS` and needs no arguments.

    Attributes:
        project: whose checkpoints these are, for people.
        classes: regular expressions of the classes whose objects its pickles hold; they are never imported.
        also: names of dialects whose files can look like this one's, so that a user may say so.
    """

    name: str
    project: str
    classes: ClassVar[tuple[str, ...]] = ()
    also: ClassVar[tuple[str, ...]] = ()

    def sniff(self, source: Source) -> bool:
        """Whether the file is of this dialect, from its names, shapes and configuration alone."""
        raise NotImplementedError

    def require(self, source: Source) -> None:
        """Refuse a file that has not what every file of this dialect has, however it is named.

        Raises:
            DialectError: where `sniff` says no.
        """
        if not self.sniff(source):
            held = ", ".join(name[:60] for name in list(source.shapes)[:8]) or "none"
            raise DialectError(
                f"{source.weights} is no checkpoint of {self.project}; its tensors are {held}. Leave dialect=... out, or give "
                "the right one."
            )

    def read(self, source: Source, answers: Answers) -> Dictionary:
        """The dictionary, float32 on the processor, with `metadata` ("model", "site" and what else the file says).

        Raises:
            DialectError: for a file that is inconsistent, says too little, or holds what no family computes.
        """
        raise NotImplementedError

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        """Write a dictionary as this project reads it.

        Raises:
            DialectError: where the format cannot express it, with the reason.
        """
        raise DialectError(f"Dictionaries are read from {self.project}, not written for it; convert to another format.")
