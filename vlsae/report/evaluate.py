"""The report of `vlsae evaluate`: one table at equal sparsity, and the frontier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlsae import __version__
from vlsae.report.figures import clean, name_lines, new_figure, png
from vlsae.report.page import cell, facts, figure, paragraph, section, table, write_page

if TYPE_CHECKING:
    from vlsae.evaluate import Evaluation, Score

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
GREY = "#7f8790"  # baselines
MARKERS = "os^Dv"
DIGITS = 3  # of the scores in the table
FAR = 1.5  # ratio of measured to wanted L0 beyond which a row is not "equal sparsity"


def _rank(score: Score) -> tuple[bool, float]:
    return score.trained, score.accuracy


def _compared(result: Evaluation) -> list[Score]:
    return [s for s in result.scores if s.trained and s.wanted == result.k and not _off(s)]


def winners(result: Evaluation) -> dict[str, list[str]]:
    """The best trained families at the table's L0 for each score, among those whose L0 is near it.

    Several where the table prints the same number for them.
    """
    near = _compared(result)
    better = {"ev": 1, "dead": -1, "accuracy": 1, "localised": 1, "auroc": 1, "stability": 1}
    best = {}
    for name, sign in better.items() if near else ():
        values = [sign * round(getattr(s, name) or 0.0, DIGITS) for s in near]
        best[name] = [s.family for s, value in zip(near, values) if value == max(values)]
    return best


def _told(families: list[str], of: int) -> str:
    """Who is best, in a few words: no winner is named where several print the same."""
    names = " and ".join(f"<b>{family}</b>" for family in families)
    return names if len(families) <= 2 else f"{len(families)} of {of} tie, it does not separate them"


def _off(score: Score) -> bool:
    return not 1 / FAR <= max(score.l0, 1e-9) / score.wanted <= FAR


def _table(result: Evaluation) -> str:
    rows = sorted((s for s in result.scores if s.wanted == result.k or s.family == "kmeans"), key=_rank, reverse=True)
    head = ["dictionary", "L0", "explained variance", "dead", "zero-shot, spliced", "objects localised",
            "median AUROC", "stability", "… at the start"]  # fmt: skip
    best = winners(result)
    cells = []
    for s in rows:
        mark = " *" if _off(s) else ""
        note = f"{s.n_latents:,} latents" if s.trained else f"baseline, {s.n_latents:,} directions"
        values = [("l0", s.l0, 1), ("ev", s.ev, 3), ("dead", s.dead, 3), ("accuracy", s.accuracy, 3),
                  ("localised", s.localised, 3), ("auroc", s.auroc, 3), ("stability", s.stability, 3),
                  ("stability_start", s.stability_start, 3)]  # fmt: skip
        cells.append([f"{s.family}{mark}<small>{note}</small>"] + [
            f"<b>{cell(value, digits)}</b>" if s.family in best.get(name, ()) else cell(value, digits)
            for name, value, digits in values
        ])  # fmt: skip
    return table(head, cells)


def _styles(result: Evaluation) -> dict[str, dict]:
    """How every family is drawn: trained ones in colours that go round by their rank, so that neighbours differ."""
    best = {s.family: s.ev for s in sorted(result.scores, key=lambda s: (s.trained, s.wanted == result.k, s.ev))}
    trained = {s.family for s in result.scores if s.trained}
    ranked = sorted(best, key=lambda family: (family not in trained, -best[family]))
    return {
        family: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linewidth": 1.2,
                 "markersize": 3.5, "markeredgewidth": 0, "zorder": 3}
        if family in trained
        else {"color": GREY, "marker": ".", "linestyle": ":", "linewidth": 1.0, "markersize": 3, "zorder": 2}
        for i, family in enumerate(ranked)
    }  # fmt: skip


def frontier(result: Evaluation) -> bytes:
    """Explained variance and errors of spliced zero-shot against L0, a line a family with its name beside it, as PNG.

    Errors are on a logarithmic axis, the fewest at the top: near no error at all families would lie on each other.
    """
    fig = new_figure(12.5, 6.2)
    styles, least = _styles(result), 0.5 / result.n_images  # no error among n is less than half of one
    errors = [max(1 - s.accuracy, least) for s in result.scores]
    panels = (
        (f"Explained variance, centred; {result.n_tokens:,} tokens", lambda s: max(s.ev, -0.05)),
        (f"Zero-shot errors, spliced; {result.n_images:,} scenes", lambda s: max(1 - s.accuracy, least)),
    )
    ticks = sorted({1, 2, *(s.wanted for s in result.scores)})
    for ax, (title, height) in zip(fig.subplots(1, 2), panels, strict=True):
        ends = {}
        for family, style in styles.items():
            points = sorted((s.l0, height(s)) for s in result.scores if s.family == family)
            ax.plot(*zip(*points, strict=True), **style)
            ends[family] = points[-1]
        ax.set_title(title, loc="left", fontsize=11)
        ax.set(xscale="log", xlabel="active latents a token (L0)")
        ax.set_xticks(ticks, [str(t) for t in ticks])
        if ax is fig.axes[0]:
            ax.set_ylim(-0.06, 1.0)
        else:
            worst = max(*errors, 1 - result.zeroed)
            ax.set(yscale="log", ylim=(1.6 * worst, 0.8 * min(*errors, max(1 - result.original, least))))
            shares = [t for t in (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1) if least <= t <= 1.6 * worst]
            ax.set_yticks(shares, [f"{100 * t:g} %" for t in shares])
            for value, text in ((result.original, "untouched model"), (result.zeroed, "patches zeroed")):
                ax.axhline(max(1 - value, least), color="#1b1f24", linewidth=0.8, linestyle="--")
                ax.text(0.01, max(1 - value, least), text, transform=ax.get_yaxis_transform(), va="bottom", fontsize=8)
        ax.minorticks_off()
        clean(ax)
        name_lines(ax, ends, {family: style["color"] for family, style in styles.items()})
    return png(fig)


def write_evaluation(result: Evaluation, path: Path) -> Path:
    """Write the page; returns its path."""
    best = winners(result)
    names = {"accuracy": "spliced zero-shot accuracy", "ev": "explained variance", "localised": "objects localised",
             "stability": "stability between seeds", "dead": "fewest dead latents"}  # fmt: skip
    of = len(_compared(result))
    told = "; ".join(f"{what}: {_told(best[name], of)}" for name, what in names.items() if name in best)
    recipe = {name: str(value) for name, value in result.recipe.items()}
    return write_page(
        path,
        "vlsae evaluate: families of dictionaries",
        "<h1>Families of dictionaries at equal sparsity</h1>",
        paragraph(
            f"Trained alike on patch tokens of the embedded tiny CLIP, for about {result.k} active latents a token. "
            f"Best at that sparsity — {told}.", "lead"
        ),
        section(
            "The table",
            paragraph(
                "Trained families first, by accuracy; the best of them in each column is bold. A star marks an L0 "
                f"more than {FAR} times off the wanted one: those rows are left out of the ranking. Untouched, the "
                f"model is right on {result.original:.3f} of {result.n_images:,} scenes, with its patches zeroed on "
                f"{result.zeroed:.3f}. "
                "Objects localised: share of objects with a latent of AUROC ≥ .95 against other objects' patches. "
                "Stability: mean cosine of atoms matched one to one with a run of another seed; beside it the same "
                "before training, which is what the start alone gives."
            ),
            _table(result),
        ),
        section(
            "The frontier",
            figure(
                frontier(result),
                "Up and to the left is better. Dotted grey: training-free baselines. Explained variances below -.05 are "
                "drawn at -.05; zero-shot errors are on a logarithmic axis, the fewest at the top.",
                "explained variance and zero-shot errors of every family against its number of active latents",
            ),
        ),
        section("How it was made", facts({"vlsae": __version__, **recipe})),
    )  # fmt: skip
