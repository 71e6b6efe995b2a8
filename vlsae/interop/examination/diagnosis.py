"""The result of `examine`, as data and as a page of text."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlsae.atomic import replacing
from vlsae.backbones.site import Site
from vlsae.metrics.result import Metric

SEVERITIES = ("ok", "warning", "wrong")
WIDTH = 116  # columns of the text
AS_IS = "as it is"
SHOWN = 6  # trials in the text; all are in the data


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
class Diagnosis:
    """Whether a dictionary fits a model, and how one knows.

    Attributes:
        subject: the dictionary, in a few words; model, site: what it was held against (site None where there is none).
        findings: all that were checked, the worst first.
        metrics: by name.
        tokens: a row a kind of token; sites: a row a site; trials: a row a change of input, threshold or k.
        verdict: the whole in a sentence or two.
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

    def summary(self) -> str:
        """All of it as text, the verdict last."""
        where = f"at {self.site} of {self.model}" if self.site else f"on {self.model}"
        blocks = [f"{self.subject}, {where}"]
        if self.metrics:
            blocks.append(_metric_table(self.metrics))
        if self.tokens:
            blocks.append(_table("By kind of token", self.tokens))
        if self.sites:
            blocks.append(_site_table(self.sites, self.site))
        if self.trials:
            blocks.append(_table("If it were used otherwise, the best first", _first(self.trials)))
        blocks.append("Findings\n" + "\n".join(_wrapped(f) for f in self.findings))
        return "\n\n".join([*blocks, _fill(self.verdict, 0)])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def _metric_table(metrics: Mapping[str, Metric]) -> str:
    lines = []
    for name, metric in metrics.items():
        ends = f" ({_number(metric.ci[0])} to {_number(metric.ci[1])})" if metric.ci else ""
        lines.append(f"  {name:<16} {_number(metric.value):>10}  {metric.definition}{ends}")
        lines += [f"  {'':<16} {_number(value):>10}  the same {label}" for label, value in metric.baselines.items()]
    return "Measured\n" + "\n".join(lines)


def _first(rows: Sequence[Row]) -> list[Row]:
    """The best trials, and the dictionary as it is wherever it stands among them."""
    return [row for i, row in enumerate(rows) if i < SHOWN or row.name == AS_IS]


def _table(title: str, rows: Sequence[Row]) -> str:
    wide = max(len(row.name) for row in rows)
    head = f"  {'':<{wide}} {'EV':>10} {'L0':>8} {'tokens':>8}"
    return "\n".join([title, head, *(f"  {r.name:<{wide}} {_number(r.ev):>10} {r.l0:>8.1f} {r.n:>8,}" for r in rows)])


def _site_table(rows: Sequence[Row], own: str | None) -> str:
    """Explained variance, a line a block and a column a stream; * is where the dictionary was examined."""
    ev = {(site.block, site.stream): row for row in rows for site in [Site.parse(row.name)]}
    blocks = sorted({block for block, _ in ev})
    streams = list(dict.fromkeys(stream for _, stream in sorted(ev, key=lambda place: place[0])))
    cells = {place: _number(row.ev) + ("*" if row.name == own else " ") for place, row in ev.items()}
    lines = [f"  {'block':>5}" + "".join(f"{stream:>12}" for stream in streams)]
    lines += [f"  {block:>5}" + "".join(f"{cells.get((block, s), ' '):>12}" for s in streams) for block in blocks]
    title = f"Explained variance at every site of this width ({rows[0].n:,} tokens each; * was examined)"
    return "\n".join([title, *lines])


def _wrapped(finding: Finding) -> str:
    return f"  {finding.severity:<8} {finding.about:<14} " + _fill(finding.text, 26)


def _fill(text: str, indent: int) -> str:
    """Text in lines of `WIDTH`, all but the first indented."""
    return textwrap.fill(
        text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent, break_long_words=False
    ).lstrip()
