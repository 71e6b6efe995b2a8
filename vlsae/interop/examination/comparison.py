"""The dictionary as it is used, beside other sites, other inputs and shuffled coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination.diagnosis import AS_IS, Finding, Remedy, Row
from vlsae.interop.examination.fit import Fit, fit, interval, shuffled
from vlsae.interop.examination.roles import known
from vlsae.interop.examination.rules import GAIN, LEAST_EV, k_is_known, severity_of_gain
from vlsae.interop.examination.trials import Trial, trained_k, trials

TIE = 0.01  # explained variance: of uses so close the one listed first, which is the more usual, is named
SEARCHED = 256  # tokens on which sites and inputs are tried together, some hundred uses; but of 16 images or more
Bar = Callable[[Sequence, str], Iterable]
WAYS = {
    "site": "sites of this width", "input": "ways to give it its input", "k": "numbers of active latents",
    "site and input": "sites with another input",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Fits to the same few tokens of every image.

    Attributes:
        own: the site; here: the fit there, as the dictionary is.
        sites: by site, `own` among them; tried: at `own`, used otherwise; shuffled: with shuffled coordinates.
        both: another site and input together, where that is clearly better than either alone; else None.
        weights: bootstrap samples of images, `[B, I]`.
    """

    own: str
    here: Fit
    sites: Mapping[str, Fit]
    tried: Mapping[Trial, Fit]
    shuffled: Fit
    both: tuple[str, Trial, Fit] | None
    weights: np.ndarray

    def severity(self, other: Fit) -> str:
        """Of using the dictionary as it is, where it could be used so; "ok" unless the gain is surely above 0."""
        low = interval(other.sums.ev(self.weights) - self.here.sums.ev(self.weights))[0]
        return severity_of_gain(known(self.here.ev), other.ev) if low > 0 or not np.isfinite(self.here.ev) else "ok"

    def rows(self) -> tuple[list[Row], list[Row]]:
        """Tables of sites, in their order, and of trials, the best first."""
        sites = [Row(site, found.ev, found.mean_l0, len(found.l0)) for site, found in self.sites.items()]
        uses = [(AS_IS, self.here), *((trial.name, found) for trial, found in self.tried.items())]
        rows = [Row(name, found.ev, found.mean_l0, len(found.l0)) for name, found in uses]
        return sites if len(sites) > 1 else [], sorted(rows, key=lambda row: -known(row.ev))


def compare_uses(
    dictionary: Dictionary, probes: Mapping[str, Tensor], own: str, weights: np.ndarray, seed: int, bar: Bar
) -> Comparison:
    """Fit a dictionary to tokens `probes[site] [I, P, d]`, at `own` also in other ways.

    Args:
        weights: bootstrap samples of images; seed: of shuffled coordinates; bar: wraps a sequence in a progress bar.
    """
    sites = {site: fit(dictionary, x) for site, x in bar(list(probes.items()), "sites")}
    ways = list(trials(dictionary, probes[own].flatten(0, 1)))
    tried = {trial: fit(dictionary, probes[own], trial.reconstruct) for trial in bar(ways, "trials")}
    best = max(known(found.ev) for found in (*sites.values(), *tried.values()))
    both = _both(dictionary, probes, own, bar) if known(sites[own].ev) < LEAST_EV and len(probes) > 1 else None
    both = both if both and known(both[2].ev) >= best + GAIN else None
    return Comparison(own, sites[own], sites, tried, fit(dictionary, shuffled(probes[own], seed)), both, weights)


def _both(dictionary: Dictionary, probes: Mapping[str, Tensor], own: str, bar: Bar) -> tuple[str, Trial, Fit]:
    """The best input at another site of the same stream: what a file leaves open is often the block and the scaling."""
    sites = [site for site in probes if site != own and site.split(".")[-1] == own.split(".")[-1]] or list(probes)
    few = max(16, SEARCHED // probes[own].shape[1])  # images
    found = [
        (site, trial, fit(dictionary, probes[site][:few], trial.reconstruct).ev)
        for site in bar(sites, "sites and inputs")
        for trial in trials(dictionary, probes[site].flatten(0, 1))
        if trial.about == "input"
    ]
    most = max(known(ev) for *_, ev in found)
    site, trial, _ = next(use for use in found if known(use[2]) >= most - TIE)
    return site, trial, fit(dictionary, probes[site], trial.reconstruct)


def findings_of(compared: Comparison, dictionary: Dictionary) -> tuple[list[Finding], list[Remedy]]:
    """What other uses say about this one, and those that are better, the best first.

    Where k or the threshold is that of training, another is no fault: more codes explain more.
    """
    settled, trained = k_is_known(dictionary), trained_k(dictionary)
    found: list[Finding] = []
    better: list[Remedy] = []
    for about, uses in _uses(compared).items():
        as_trained = [(r, f) for r, f in uses if r.k is not None and r.k == trained and compared.severity(f) != "ok"]
        finding, remedy = _best_use(compared, about, as_trained or uses)
        if about == "k" and finding.severity != "ok":
            finding = replace(finding, severity="ok" if settled and finding.severity == "warning" else "warning")
        found.append(finding)
        better += [remedy] if remedy and finding.severity != "ok" else []
    return found, sorted(better, key=lambda remedy: -remedy.ev)


def _uses(compared: Comparison) -> dict[str, list[tuple[Remedy, Fit]]]:
    """Other uses by what they change, each with what to do for it and its fit."""
    own = compared.own
    uses = {
        "site": [(_remedy("site", site, None, found), found) for site, found in compared.sites.items() if site != own]
    }
    for about in ("input", "k"):
        tried = [(trial, found) for trial, found in compared.tried.items() if trial.about == about]
        uses[about] = [(_remedy(about, own, trial, found, elsewhere=False), found) for trial, found in tried]
    if compared.both:
        site, trial, found = compared.both
        uses["site and input"] = [(_remedy("site and input", site, trial, found), found)]
    return {about: tried for about, tried in uses.items() if tried}


def _remedy(about: str, site: str, trial: Trial | None, found: Fit, elsewhere: bool = True) -> Remedy:
    how = [f"at {site}"] if elsewhere else []
    if trial is None:
        return Remedy(about, *how, found.ev, site)
    return Remedy(about, " ".join([*how, f"with {trial.name}"]), found.ev, site, trial.remedy, trial.k)


def _best_use(compared: Comparison, about: str, uses: Sequence[tuple[Remedy, Fit]]) -> tuple[Finding, Remedy | None]:
    most = max(known(found.ev) for _, found in uses)
    remedy, best = next(use for use in uses if known(use[1].ev) >= most - TIE)
    severity = compared.severity(best)
    here = f"{compared.here.ev:.3f} at {compared.own} as it is"
    counts = f"a gain of {GAIN}, to above 0, counts"
    if severity == "ok":
        of = f"None of {len(uses)} other {WAYS[about]} is clearly better"
        text = f"{of}: explained variance is {here}, at most {best.ev:.3f} {remedy.how} ({counts})."
        return Finding("ok", about, text), None
    text = f"It fits best {remedy.how}: explained variance is {best.ev:.3f} then, {here} ({counts})."
    return Finding(severity, about, text), remedy
