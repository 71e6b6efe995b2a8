"""Accuracies under masks as one long table, and what is read from it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlsae.adaptation.comparison.gains import harmonic_mean
from vlsae.atomic import replacing
from vlsae.splice.audits.inference import wilson

Size = int | str  # of the top; "all" for the whole dictionary

COLUMNS = ("model", "ranking", "direction", "k", "error_kept", "class_id", "class_name", "condition", "n", "correct",
           "accuracy", "low", "high")  # fmt: skip


@dataclass(frozen=True)
class Point:
    """An accuracy with its Wilson interval.

    Example:
        >>> point = Point(10, 8)
        >>> point.accuracy, round(point.low, 3), round(point.high, 3)
        (0.8, 0.49, 0.943)
    """

    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @cached_property
    def band(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        low, high = wilson(self.correct, self.n)
        return float(low), float(high)

    @property
    def low(self) -> float:
        return self.band[0]

    @property
    def high(self) -> float:
        return self.band[1]


@dataclass(frozen=True)
class MaskRow:
    """The images of one class under one mask.

    Attributes:
        model: its name; ranking: its name, "" where unmasked.
        direction: "on", only the first k latents kept; "off", these removed; "" where unmasked.
        k: latents at the top, or "all".
        error_kept: whether what the dictionary does not explain stayed in place.
        class_id: of the images; n: images; correct: of these, classified right.
    """

    model: str
    ranking: str
    direction: str
    k: Size
    error_kept: bool
    class_id: int
    n: int
    correct: int

    @property
    def condition(self) -> str:
        """What was done, in one word: "unmasked", "on_5", "off_all", "on_5_without_error"."""
        if not self.direction:
            return "unmasked"
        return f"{self.direction}_{self.k}" + ("" if self.error_kept else "_without_error")


@dataclass(frozen=True)
class MaskingCurves:
    """Accuracies under masks.

    Attributes:
        rows: one a model, ranking, direction, k, error term and class.
        class_names: of the class numbers.

    Example:
        >>> found = MaskingCurves([MaskRow("base", "class", "on", 2, True, c, 4, 1 + c) for c in (0, 1)], ("cat", "dog"))
        >>> found.point("base", "class", "on", 2).accuracy, found.point("base", "class", "on", 2, classes=[1]).accuracy
        (0.375, 0.5)
    """

    rows: list[MaskRow]
    class_names: tuple[str, ...]

    def point(
        self, model: str, ranking: str, direction: str, k: Size, error_kept: bool = True,
        classes: Sequence[int] | None = None,
    ) -> Point:  # fmt: skip
        """Accuracy over the images of some classes, or all.

        Raises:
            ValueError: where the table has no such row.
        """
        return self._sum((model, ranking, direction, k, error_kept), classes)

    def unmasked(self, model: str, classes: Sequence[int] | None = None) -> Point:
        """Accuracy without a mask."""
        return self._sum((model, "", "", 0, True), classes)

    def base_and_new(
        self, model: str, ranking: str, direction: str, k: Size, base: Sequence[int], new: Sequence[int],
        error_kept: bool = True,
    ) -> tuple[float, float, float]:  # fmt: skip
        """Accuracies on base and new classes and their harmonic mean, in per cent."""
        parts = (self.point(model, ranking, direction, k, error_kept, classes) for classes in (base, new))
        b, n = (100 * part.accuracy for part in parts)
        return b, n, harmonic_mean(b, n)

    def write_csv(self, path: str | Path) -> Path:
        """Write the table in long format, in one step."""
        with replacing(Path(path)) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(COLUMNS)
            for row in self.rows:
                p = Point(row.n, row.correct)
                kept = (row.model, row.ranking, row.direction, row.k, row.error_kept, row.class_id)
                out.writerow(
                    [*kept, self.class_names[row.class_id], row.condition, p.n, p.correct, p.accuracy, *p.band]
                )
        return Path(path)

    @cached_property
    def _by_condition(self) -> dict[tuple, list[MaskRow]]:
        found: dict[tuple, list[MaskRow]] = {}
        for row in self.rows:
            found.setdefault((row.model, row.ranking, row.direction, row.k, row.error_kept), []).append(row)
        return found

    def _sum(self, key: tuple, classes: Sequence[int] | None) -> Point:
        rows = [row for row in self._by_condition.get(key, []) if classes is None or row.class_id in classes]
        if not rows:
            raise ValueError(
                f"No row has model, ranking, direction, k and error_kept {key} with classes {classes}; conditions are "
                f"{sorted({row.condition for row in self.rows})} of {sorted({row.model for row in self.rows})}."
            )
        return Point(sum(row.n for row in rows), sum(row.correct for row in rows))
