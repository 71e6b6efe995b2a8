"""A published layout of learned weights: how its tensors are recognised, and what they become."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.backbones.base import Backbone
from vlsae.registry import Registry

LAYOUTS = Registry("published layout", "vlsae.adaptation.published")


class Found:
    """The tensors of a file, of which a layout takes each exactly once; what is left over in the end is refused.

    Args:
        source: its path, for messages.
        held: what the file holds, by dotted names.
    """

    def __init__(self, source: str, held: Mapping[str, Any]):
        inner = {k.removeprefix("state_dict."): v for k, v in held.items() if k.startswith("state_dict.")} or held
        tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
        wrapped = bool(tensors) and all(name.startswith("module.") for name in tensors)
        self.source = source
        self.facts = {name: value for name, value in held.items() if not isinstance(value, Tensor)}
        self.tensors = {name.removeprefix("module.") if wrapped else name: value for name, value in tensors.items()}

    def has(self, pattern: str) -> bool:
        """Whether a name matches a regular expression from its start."""
        return any(re.match(pattern, name) for name in self.tensors)

    def take(self, name: str) -> Tensor:
        """A tensor, in float32.

        Raises:
            AdaptationError: where it is missing.
        """
        if name not in self.tensors:
            raise AdaptationError(
                f"{self.source} lacks the tensor {name!r}; it holds {', '.join(sorted(self.tensors)[:8])}. It is damaged, or "
                "was written by another version of its method."
            )
        value = self.tensors.pop(name).detach()
        return value.float() if value.is_floating_point() else value

    def take_all(self, pattern: str) -> dict[str, Tensor]:
        """All tensors whose whole names match, by the pattern's first group."""
        matches = [match for name in list(self.tensors) if (match := re.fullmatch(pattern, name))]
        return {match[1]: self.take(match[0]) for match in matches}

    def take_numbered(self, pattern: str, first: int = 0) -> list[Tensor]:
        """Tensors numbered `first`, `first` + 1, ... by the pattern's group.

        Raises:
            AdaptationError: where one in between is missing.
        """
        found = {int(number): value for number, value in self.take_all(pattern).items()}
        gaps = sorted(set(range(first, first + len(found))) - set(found))
        if gaps:
            raise AdaptationError(
                f"{self.source} has the numbers {sorted(found)} of {pattern}, but lacks {gaps}; it is damaged."
            )
        return [found[number] for number in sorted(found)]

    def ignore(self, pattern: str) -> None:
        """Drop tensors that follow from the class names or that the method does not use."""
        self.take_all(f"({pattern})")

    def assume(self, name: str, given: Any, default: Any) -> Any:
        """What was given, or else the published default, said in a warning."""
        if given is not None:
            return given
        warnings.warn(f"{self.source} does not say {name}; the published {name}={default!r} is used.", stacklevel=5)
        return default

    def finish(self) -> None:
        """Refuse tensors that nothing has taken."""
        if self.tensors:
            raise AdaptationError(
                f"{self.source} holds {len(self.tensors)} tensors that its method does not know: "
                f"{', '.join(sorted(self.tensors)[:8])}. Nothing was loaded, since they would have no effect."
            )


class Layout:
    """One published form. A layout is one file in `published` with a sub-class under `@LAYOUTS.register("name")`.

    Keyword-only arguments of `read` are what a file does not say and a user may give to `load_adapted`.

    Attributes:
        described: what it is, for messages.
    """

    described: ClassVar[str]

    def sniff(self, found: Found) -> bool:
        """Whether the names are this layout's; looks and takes nothing."""
        raise NotImplementedError

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        """Take the tensors and put them into the method they belong to."""
        raise NotImplementedError
