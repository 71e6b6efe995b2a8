"""The configuration that we write beside a model of `overcomplete`, which may have been edited since."""

from __future__ import annotations

import math
from typing import Any

from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe
from vlsae.interop.overcomplete_export import LIBRARY
from vlsae.interop.source import Source

FIELDS = {"library", "class", "arguments", "model", "site", "how_to_open", "k", "running_threshold", "notes"}
ARGUMENTS = {"input_shape", "nb_concepts", "encoder_module", "dictionary_params", "device", "top_k", "threshold_momentum",
             "kernel", "bandwidth", "bandwith", "points", "delta", "use_multiplier", "k", "dropout", "max_iter"}  # fmt: skip
LAYER_ARGUMENTS = {"normalization", "initializer", "use_multiplier", "device"}


class Written:
    """Our configuration beside a file; empty where there is none or another project's.

    Attributes:
        fields: all of it; arguments: of the class; layer: of the dictionary layer among those.
    """

    def __init__(self, source: Source):
        self.fields = source.config if source.config.get("library") == LIBRARY else {}
        self.arguments = _table(source, self.fields, "arguments")
        self.layer = _table(source, self.arguments, "dictionary_params")

    def unknown(self) -> dict[str, Any]:
        """What is set in it that no release knows."""
        places = (("", self.fields, FIELDS), ("arguments.", self.arguments, ARGUMENTS),
                  ("dictionary_params.", self.layer, LAYER_ARGUMENTS))  # fmt: skip
        return {f"{at}{name}": value for at, held, known in places for name, value in held.items() if name not in known}


def agreed(where: Any, name: str, *values: Any) -> Any:
    """What several places of a file say, None where none does.

    Raises:
        DialectError: where they differ.
    """
    said = [value for value in values if value is not None]
    others = [value for value in said if not _same(value, said[0])]
    if others:
        raise DialectError(
            f"{where} says {name}={describe(said[0])} in one place and {describe(others[0])} in another (its model, layers or "
            "config.json); set right what is wrong."
        )
    return said[0] if said else None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _table(source: Source, config: dict[str, Any], name: str) -> dict[str, Any]:
    """A field that has fields of its own."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise DialectError(f"{source.weights}: {name}={describe(value)} in its config.json; expected names and values.")
    return value or {}


def _same(value: Any, other: Any) -> bool:
    """Whether two places say the same, numbers to the rounding of float32."""
    if is_number(value) and is_number(other):
        return math.isclose(value, other, rel_tol=1e-6)
    return type(value) is type(other) and value == other
