"""The result of `examine`, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlsae.atomic import replacing
from vlsae.metrics.result import Metric

SEVERITIES = ("ok", "warning", "wrong")
AS_IS = "as it is"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        severity: "ok", "warning" (usable, but look) or "wrong" (dictionary and model do not fit as they are).
        about: a short name, such as "site".
        text: one sentence with the number, the bound, and what to do.
    """

    severity: str
    about: str
    text: str


@dataclass(frozen=True)
class Row:
    """A line of a table: explained variance and active latents a token of one kind of token, site or trial."""

    name: str
    ev: float
    l0: float
    n: int


@dataclass(frozen=True)
class Remedy:
    """Another use with which the dictionary explains more.

    Attributes:
        about: what it changes: "site", "input", "k" or "site and input"; how: the same as the end of a sentence.
        ev: explained variance then; site: where.
        lines: of Python, that make the change last for a dictionary `sae`; some read `tokens [N, d]` of the site.
        k: the other k, where that is the change.
    """

    about: str
    how: str
    ev: float
    site: str
    lines: tuple[str, ...] = ()
    k: int | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Whether a dictionary fits a model, and how one knows.

    Attributes:
        subject: the dictionary, in a few words; model, site: what it was held against (site None where there is none).
        findings: all that were checked, the worst first.
        metrics: by name.
        tokens: a row a kind of token; sites: a row a site; trials: a row a change of input, threshold or k.
        verdict: the whole in a sentence.
        judged: the kinds of token it was judged on.
        remedies: what to do instead, the best first.
        expected: by name of a metric, its bounds in words.
        opened: how a file of another project was opened, `metadata["opened_from"]`; notes: what is good to know about it.
        n_images: how many were drawn.
    """

    subject: str
    model: str
    site: str | None
    findings: Sequence[Finding]
    verdict: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    tokens: Sequence[Row] = ()
    sites: Sequence[Row] = ()
    trials: Sequence[Row] = ()
    judged: Sequence[str] = ()
    remedies: Sequence[Remedy] = ()
    expected: Mapping[str, str] = field(default_factory=dict)
    opened: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    n_images: int = 0

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.severity != "wrong" for finding in self.findings)

    def finding(self, about: str) -> Finding:
        """The worst finding of that name.

        Raises:
            ValueError: where there is none.
        """
        for finding in self.findings:
            if finding.about == about:
                return finding
        raise ValueError(f"There is no finding {about!r}; there are {', '.join(f.about for f in self.findings)}.")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers that do not exist are None."""
        data = asdict(self) | {"fits": self.fits, "metrics": {k: m.as_dict() for k, m in self.metrics.items()}}
        return _finite(data)

    def save(self, path: str | Path) -> Path:
        """Write `as_dict` as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    def summary(self, *, full: bool = False, path: str = "", data: str = "", options: str = "") -> str:
        """The diagnosis as text, the verdict first.

        Args:
            full: with all numbers, sites, trials and checks.
            path, data: of the dictionary and the images, for the lines of what to do; "" in Python.
            options: other options of the command, as they were given.
        """
        from vlsae.interop.examination.page import page  # which reads this module

        return page(self, full=full, path=path, data=data, options=options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
