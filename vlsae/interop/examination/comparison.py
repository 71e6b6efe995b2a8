"""The dictionary as it is used, beside other sites, other inputs and shuffled coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination.diagnosis import Finding, Row
from vlsae.interop.examination.fit import Fit, fit, interval, shuffled
from vlsae.interop.examination.roles import known
from vlsae.interop.examination.rules import GAIN, LEAST_EV, severity_of_gain
from vlsae.interop.examination.trials import Trial, trials

Bar = Callable[[Sequence, str], Iterable]
WAYS = {"input": "to scale the input", "k": "to set k or the threshold"}


@dataclass(frozen=True)
class Comparison:
    """Fits to the same few tokens of every image.

    Attributes:
        own: the site; here: the fit there, as the dictionary is.
        sites: by site, `own` among them; tried: at `own`, used otherwise; shuffled: with shuffled coordinates.
        both: the best other site and input together, where neither alone is enough; else None.
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
        uses = [("as it is", self.here), *((trial.name, found) for trial, found in self.tried.items())]
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
    tried = _tried(dictionary, probes[own], bar, "trials")
    best = max([known(found.ev) for found in (*sites.values(), *tried.values())])
    both = _both(dictionary, probes, own, bar) if best < LEAST_EV and len(probes) > 1 else None
    return Comparison(own, sites[own], sites, tried, fit(dictionary, shuffled(probes[own], seed)), both, weights)


def _tried(dictionary: Dictionary, x: Tensor, bar: Bar, name: str) -> dict[Trial, Fit]:
    return {
        trial: fit(dictionary, x, trial.reconstruct) for trial in bar(list(trials(dictionary, x.flatten(0, 1))), name)
    }


def _both(dictionary: Dictionary, probes: Mapping[str, Tensor], own: str, bar: Bar) -> tuple[str, Trial, Fit]:
    """The best trial of an input at another block's output: what a file leaves open is often the site and the scaling."""
    sites = [site for site in probes if site != own and site.split(".")[-1] == own.split(".")[-1]] or list(probes)
    found = [
        (site, trial, seen)
        for site in bar(sites, "sites and inputs")
        for trial, seen in _tried(dictionary, probes[site], lambda steps, _: steps, "").items()
        if trial.about == "input"
    ]
    return max(found, key=lambda use: known(use[2].ev))


def findings_of(compared: Comparison) -> tuple[list[Finding], list[tuple[float, str]]]:
    """What other uses say about this one, and those that are better, `(explained variance, in words)`."""
    found, remedies = [], []
    here, own = compared.here.ev, compared.own
    if len(compared.sites) > 1:
        best = max(compared.sites, key=lambda site: known(compared.sites[site].ev))
        severity = compared.severity(compared.sites[best])
        if severity == "ok":
            beside = max(known(other.ev) for site, other in compared.sites.items() if site != own)
            found.append(Finding("ok", "site", f"Of {len(compared.sites)} sites of this width none is clearly better than {own}: it "
                                 f"explains {here:.3f} there, elsewhere at most {beside:.3f}."))  # fmt: skip
        else:
            there = compared.sites[best].ev
            remedies.append((there, f"it fits best at {best}"))
            found.append(Finding(severity, "site", f"It fits best at {best}: it explains {there:.3f} there, {here:.3f} at {own} (a gain "
                                 f"of {GAIN} counts). Use it with --site {best}."))  # fmt: skip
    for about, ways in WAYS.items():
        mine = {trial: other for trial, other in compared.tried.items() if trial.about == about}
        if not mine:
            continue
        best = max(mine, key=lambda trial: known(mine[trial].ev))
        there, severity = mine[best].ev, compared.severity(mine[best])
        if severity == "ok":
            found.append(Finding("ok", about, f"Of {len(mine)} other ways {ways} none is clearly better: it explains {here:.3f} as it "
                                 f"is, otherwise at most {there:.3f} ({best.name})."))  # fmt: skip
            continue
        remedies.append((there, f"it fits best {best.words}"))
        found.append(Finding("warning" if about == "k" else severity, about, f"It explains {there:.3f} {best.words}, {here:.3f} as it "
                             f"is (a gain of {GAIN} counts); {best.remedy}."))  # fmt: skip
    if compared.both and (severity := compared.severity(compared.both[2])) != "ok":
        site, trial, other = compared.both
        remedies.append((other.ev, f"it fits best at {site} {trial.words}"))
        found.append(Finding(severity, "site and input", f"It explains {other.ev:.3f} at {site} {trial.words}, {here:.3f} at {own} as it "
                             f"is (a gain of {GAIN} counts). Use it with --site {site}, and {trial.remedy}."))  # fmt: skip
    return found, sorted(remedies, reverse=True)
