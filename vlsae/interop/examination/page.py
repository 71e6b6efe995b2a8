"""A diagnosis as a page of text: the verdict, why, numbers beside their bounds, what to do; all the rest only in full."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from vlsae.backbones.site import Site
from vlsae.interop.examination.diagnosis import Diagnosis, Finding, Row
from vlsae.interop.examination.rules import GAIN
from vlsae.interop.examination.steps import steps
from vlsae.metrics.result import Metric

WIDTH = 108  # columns
REASONS, NOTES = 2, 2  # findings and notes that stand on the short page; one finding where a better use is known
LABELS = {
    "ev_centred": "explained variance (of 1)", "l0": "active latents a token", "silent": "tokens with no active latent (%)",
    "dead": "latents that never fired (%)", "stretch": "length of reconstructions (times)", "atom_norm_median": "norm of atoms",
}  # fmt: skip
RANGES = {"l0": ("l0_p5", "l0_p95"), "atom_norm_median": ("atom_norm_min", "atom_norm_max")}
PERCENT, TENTHS = ("silent", "dead"), ("silent", "dead", "l0")  # shown in percent; with one digit
MEANING = (
    "Explained variance is 1 - squared error / squared distance from the mean token: 0 is no better than that mean. "
    "Its range is a 95 % interval over images; that of active latents holds 90 % of tokens."
)


def page(found: Diagnosis, *, full: bool, path: str, data: str, options: str) -> str:
    """All arguments as for `Diagnosis.summary`."""
    blocks = [_fill(found.verdict), _why(found, full)]
    if found.metrics:
        blocks.append(_measured(found))
    blocks.append("What to do\n" + "\n".join(_step(line) for line in steps(found, path, data, options)))
    blocks += [_opening(found, full)] if found.opened or found.notes else []
    if full:
        blocks += _tables(found)
    else:
        rest = (
            "all checks, and their bounds" if not found.trials else "all checks, sites and other uses that were tried"
        )
        blocks.append(f"{'With --full' if path else 'With summary(full=True)'}: {rest}.")
    return "\n\n".join(blocks)


def _why(found: Diagnosis, full: bool) -> str:
    """The decisive numbers in a sentence, then the worst of what was found that no better use explains."""
    lines = [f"Why ({found.subject})"]
    if found.metrics:
        ev = found.metrics["ev_centred"]
        beside = next(iter(ev.baselines.values()))
        better = f", but {found.remedies[0].ev:.3f} {found.remedies[0].how}" if found.remedies else ""
        lines.append(_fill(f"It explains {ev.value:.3f} of the variance of {' and '.join(found.judged)} tokens "
                           f"(as a control, {beside:.3f} with shuffled coordinates){better}.", 2))  # fmt: skip
    explained = {"variance"} if found.remedies else set()
    explained |= {remedy.about for remedy in found.remedies}
    others = [f for f in found.findings if f.severity != "ok" and f.about not in explained]
    shown = len(others) if full else 1 if found.remedies else REASONS
    lines += [_fill(f"{f.severity.capitalize()}: {f.text}", 2) for f in others[:shown]]
    if others[shown:]:
        lines.append(f"  More in full: {', '.join(dict.fromkeys(f.about for f in others[shown:]))}.")
    return "\n".join(lines)


def _measured(found: Diagnosis) -> str:
    """A line a number, its range and its bound; other numbers stand in the full page."""
    rows = [("", "measured", "range", "expected")]
    for name, label in LABELS.items():
        metric, times = found.metrics[name], 100 if name in PERCENT else 1
        if name == "silent" and metric.value == 0:
            continue  # as nearly always
        ends = metric.ci or tuple(found.metrics[end].value for end in RANGES.get(name, ()))
        digits = 1 if name in TENTHS else 3
        between = " to ".join(_number(end, digits) for end in ends)
        rows.append((label, _number(times * metric.value, digits), between, found.expected.get(name, "")))
        for other, value in metric.baselines.items():
            bound = f"less, by {GAIN} or more" if "shuffled" in other else f"at most {GAIN} more"
            rows.append((f"  {other}", _number(value), "", bound))
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"  {a:<{wide[0]}} {b:>{wide[1]}}   {c:<{wide[2]}}   {d}".rstrip() for a, b, c, d in rows]
    n = f"{found.n_images:,} {'texts' if str(found.site).startswith('text') else 'images'}"
    title = f"Measured on {n}, {found.metrics['ev_centred'].n:,} {' and '.join(found.judged)} tokens"
    return "\n".join([title, *lines, _fill(MEANING, 2)])


def _step(line: str) -> str:
    """Sentences are wrapped; what is to be copied, which is indented, stays as it is."""
    return "  " + line if line.startswith(" ") else _fill(line, 2)


def _opening(found: Diagnosis, full: bool) -> str:
    """What the user said, which is most likely what is wrong, and what the reader of the file noted."""
    lines = ["Notes"]
    if found.opened:
        lines = [f"How it was opened: as {found.opened.get('dialect')}, from {found.opened.get('file')}"]
    if told := found.opened.get("told"):
        said = ", ".join(f"{name}={value}" for name, value in told.items())
        lines.append(_fill(f"You said {said}. The file does not; a wrong answer looks like a wrong dictionary.", 2))
    for note in found.notes if full else found.notes[:NOTES]:
        short = str(note) if full else textwrap.shorten(str(note), 2 * WIDTH - 20, placeholder=" ...")
        lines.append(_fill(short, 2))
    return "\n".join(lines)


def _tables(found: Diagnosis) -> list[str]:
    tables = [_metric_table(found.metrics)] if found.metrics else []
    tables += [_table("By kind of token", found.tokens)] if found.tokens else []
    tables += [_site_table(found.sites, found.site)] if found.sites else []
    tables += [_table("If it were used otherwise, the best first", found.trials)] if found.trials else []
    return [*tables, "All that was checked\n" + "\n".join(_checked(f) for f in found.findings)]


def _number(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def _metric_table(metrics: dict[str, Metric]) -> str:
    lines = [f"  {name:<16} {_number(m.value):>10} of {m.n:>7,}  {m.definition}" for name, m in metrics.items()]
    return "All numbers, by their names in the data\n" + "\n".join(lines)


def _table(title: str, rows: Sequence[Row]) -> str:
    wide = max(len(row.name) for row in rows)
    head = f"  {'':<{wide}} {'explained':>10} {'active':>8} {'tokens':>8}"
    return "\n".join([title, head, *(f"  {r.name:<{wide}} {_number(r.ev):>10} {r.l0:>8.1f} {r.n:>8,}" for r in rows)])


def _site_table(rows: Sequence[Row], own: str | None) -> str:
    """Explained variance, a line a block and a column a stream; * is where the dictionary was examined."""
    ev = {(site.block, site.stream): row for row in rows for site in [Site.parse(row.name)]}
    blocks = sorted({block for block, _ in ev})
    streams = list(dict.fromkeys(stream for _, stream in sorted(ev, key=lambda place: place[0])))
    cells = {place: _number(row.ev) + ("*" if row.name == own else " ") for place, row in ev.items()}
    lines = [f"  {'block':>5}" + "".join(f"{stream:>12}" for stream in streams)]
    lines += [
        f"  {block:>5}" + "".join(f"{cells.get((block, s), ' '):>12}" for s in streams).rstrip() for block in blocks
    ]
    title = f"Explained variance at every site of this width ({rows[0].n:,} tokens each; * was examined)"
    return "\n".join([title, *lines])


def _checked(finding: Finding) -> str:
    return f"  {finding.severity:<8} {finding.about:<14} " + _fill(finding.text, 26).lstrip()


def _fill(text: str, indent: int = 0) -> str:
    """Text in lines of `WIDTH`."""
    space = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
