"""A number with what is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One score.

    Args:
        name: short and unique, such as "ev_centred".
        value: the number.
        n: what it was computed on.
        definition: the formula or sentence that fixes it.
        reference: paper and equation, or "".
        higher_is_better: None where neither is.
        ci: 95 % interval, or None.
        baselines: the same score of something simpler, by name.
    """

    name: str
    value: float
    n: int
    definition: str
    reference: str = ""
    higher_is_better: bool | None = True
    ci: tuple[float, float] | None = None
    baselines: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Flat, for `metrics.json`: value, n, the baselines by name, and how to read them."""
        return {
            "value": self.value,
            "n": self.n,
            **({"ci": list(self.ci)} if self.ci else {}),
            **self.baselines,
            "definition": self.definition,
            "reference": self.reference,
            "higher_is_better": self.higher_is_better,
        }
