"""Whether a dictionary and a model belong together, in numbers and in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination import rules
from vlsae.interop.examination.comparison import Comparison, compare_uses, findings_of
from vlsae.interop.examination.diagnosis import SEVERITIES, Diagnosis, Finding, Remedy, Row
from vlsae.interop.examination.fit import Fit, fit, resample
from vlsae.interop.examination.numbers import expected, numbers_of
from vlsae.interop.examination.place import find_place, readable
from vlsae.interop.examination.roles import (
    POLICIES,
    best_ev,
    finding_of_roles,
    judged_roles,
    probe_places,
    token_places,
    wanted_roles,
    where,
)
from vlsae.interop.examination.tokens import comparable_sites, read_tokens, sample_inputs, site_widths

OTHER_TARGET = ("transcoder", "feed_forward", "crosscoder")  # families that do not reconstruct what they read


@torch.no_grad()
def examine(
    dictionary: Dictionary,
    model: Backbone,
    images: Any,
    *,
    site: str | None = None,
    tokens: str | None = None,
    n_images: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> Diagnosis:
    """Hold a dictionary against a model's tokens and say whether, where and how it fits.

    `ev_centred = 1 - sum ||x - xhat||^2 / sum ||x - mean||^2`, at the site, at every other site of that width and with inputs
    scaled in other ways, so that a wrong block or a forgotten scaling shows by what would be better. Bounds: explained
    variance below 0 is worse than answering with the mean; below .5 most is lost; a gain of .05 by another use counts, with an
    interval over images that excludes 0; L0 behind a threshold is within a factor of 2 of k. Their reasons are in
    `examination/rules.py`.

    Args:
        dictionary: any family that reconstructs its input.
        model: the backbone.
        images: whatever `load_images` opens, or pixels `[I, 3, H, W]`; a list of strings at `text.pooled`.
        site: where; the dictionary's own where None; the best of all where it does not know.
        tokens: "patches", "cls", "patches+cls", "all" or "random_k"; the dictionary's own where None; else patches and CLS
            are looked at apart and the better is judged.
        n_images: how many are drawn, 2 or more; all tokens of theirs at the site are held in memory.
        seed: of the draw and of the intervals.
        batch_size: images a forward pass.
        progress: show progress bars.

    Returns:
        A `Diagnosis`; what does not fit is a finding in it, not an error.

    Raises:
        ValueError: for a misspelled site, a text site other than text.pooled, too few images, or a family whose target is not
            its input.

    Example:
        >>> from vlsae import load_model, world
        >>> from vlsae.dictionaries.projection import ProjectionDictionary
        >>> whole = ProjectionDictionary(192, 192, k=192)  # all coordinates: nothing is lost
        >>> found = examine(whole, load_model("tiny"), world.scenes(2), site="vision.-2.resid_post", progress=False)
        >>> found.fits, round(found.metrics["ev_centred"].value, 4)
        (True, 1.0)
    """
    if dictionary.family in OTHER_TARGET:
        raise ValueError(f"A {dictionary.family!r} does not reconstruct what it reads, which is what the doctor looks at; use "
                         "vlsae.metrics.reconstruction.reconstruction(..., target=...).")  # fmt: skip
    check_request(site, tokens, n_images)
    widths = site_widths(model)
    place, problem = find_place(dictionary, model, site, widths)
    if problem is not None:
        named = site or dictionary.metadata.get("site")
        why = re.split("[:;] ", problem.text)[0]
        verdict = f"It does not fit {model.spec}: {why[0].lower()}{why[1:]}."
        return Diagnosis(_subject(dictionary), model.spec, named, [problem], verdict, **_provenance(dictionary))
    job = _Job(dictionary, model, sample_inputs(images, n_images, seed), seed, batch_size, progress)
    return job.run(place, comparable_sites(place, widths, dictionary.d), tokens or dictionary.metadata.get("tokens"))


def check_request(site: str | None, tokens: str | None, n_images: int) -> None:
    """What can be said of the arguments before anything is opened.

    Raises:
        ValueError: as `examine`.
    """
    if n_images < 2:
        raise ValueError(
            f"n_images={n_images} was given; give 2 or more (64 is usual), since intervals are over images."
        )
    if tokens not in (None, *POLICIES):
        raise ValueError(f"tokens={tokens!r} is unknown; give one of {', '.join(POLICIES)}.")
    if site is not None:
        readable(site)


@dataclass(frozen=True)
class _Job:
    """What is examined on what, and how."""

    dictionary: Dictionary
    model: Backbone
    inputs: Sequence[Any]
    seed: int
    batch_size: int
    progress: bool

    def run(self, place: Site | None, others: Sequence[str], policy: Any) -> Diagnosis:
        """The diagnosis at a site, or at the best of the others where that is None."""
        kept, roles = token_places(self.model, place, policy)
        probe = probe_places(roles, len(self.inputs), self.seed)
        partly = {site: [kept[i] for i in probe] for site in others}
        findings: list[Finding] = []
        if place is None:
            seen = self.read(partly)
            probed = [roles[i] for i in probe]
            wanted = wanted_roles(policy, roles)
            own = max(self.bar(list(others), "sites"), key=lambda s: best_ev(self.dictionary, seen[s], probed, wanted))
            seen[own] = self.read({own: kept})[own]
            findings.append(Finding("warning", "site", f"Nothing says at which site it was trained; of {len(others)} it "
                                    f"explains most at {own}, which was examined. Give --site where you know it."))  # fmt: skip
        else:
            own = str(place)
            seen = self.read({**partly, own: kept})
        x = seen[own]
        fits = {role: fit(self.dictionary, x[:, where(roles, role)]) for role in dict.fromkeys(roles)}
        judged = judged_roles(policy, fits)
        at = [i for i, role in enumerate(roles) if role in judged]
        whole = fits[judged[0]] if len(judged) == 1 else fit(self.dictionary, x[:, at])
        at_probe = [j for j, i in enumerate(probe) if roles[i] in judged]
        in_full = [probe[j] for j in at_probe]
        probes = {site: values[:, in_full if site == own else at_probe] for site, values in seen.items()}
        weights = resample(len(self.inputs), self.seed)
        compared = compare_uses(self.dictionary, probes, own, weights, self.seed, self.bar)
        about, remedies = finding_of_roles(policy, judged, whole.ev, fits, own)
        return _concluded(self.dictionary, self.model, x[:, at], whole, judged, fits, compared, [*findings, about],
                          remedies)  # fmt: skip

    def read(self, places: dict[str, list[int]]) -> dict[str, Tensor]:
        return read_tokens(self.model, self.inputs, places, self.batch_size, self.progress)

    def bar(self, steps: Sequence, name: str) -> Iterable:
        return tqdm(steps, desc=name, disable=not self.progress)


def _concluded(
    dictionary: Dictionary, model: Backbone, x: Tensor, whole: Fit, judged: Sequence[str], fits: dict[str, Fit],
    compared: Comparison, findings: list[Finding], more: list[Remedy],
) -> Diagnosis:  # fmt: skip
    """All findings, the worst first, and the verdict."""
    numbers = numbers_of(dictionary, x, whole, compared)
    others, remedies = findings_of(compared, dictionary)
    if findings[0].about == "site":  # it was chosen as the best
        others = [finding for finding in others if finding.about != "site"]
        remedies = [remedy for remedy in remedies if remedy.about != "site"]
    remedies = sorted([*remedies, *more], key=lambda remedy: -remedy.ev)
    distance = numbers.get("origin_distance")
    all_of_them = [
        rules.of_variance(whole.ev, compared.shuffled.ev), *findings, *others, rules.of_model(dictionary, model),
        *rules.of_sparsity(dictionary, whole), rules.of_dead(dictionary.n_latents, whole),
        rules.of_norms(dictionary, dictionary.atoms.float().norm(dim=1)), rules.of_signs(dictionary, whole),
        rules.of_pairing(rules.pairing(dictionary), whole.ev), rules.of_lengths(whole),
        rules.of_origin(dictionary, numbers["mean_norm"].value, numbers["token_norm"].value, distance and distance.value),
    ]  # fmt: skip
    found = sorted((f for f in all_of_them if f is not None), key=lambda f: -SEVERITIES.index(f.severity))
    sites, trials = compared.rows()
    tokens = [Row(role, seen.ev, seen.mean_l0, len(seen.l0)) for role, seen in fits.items()]
    return Diagnosis(
        _subject(dictionary), model.spec, compared.own, found, _verdict(model.spec, compared.own, whole.ev, found, remedies),
        numbers, tokens, sites, trials, judged, remedies, expected(dictionary), n_images=len(x), **_provenance(dictionary),
    )  # fmt: skip


def _subject(dictionary: Dictionary) -> str:
    settings = "".join(f", {name}={value}" for name, value in dictionary.settings.items())
    scaled = "" if dictionary.transform.kind == "none" else f", input {dictionary.transform.kind}"
    return f"{dictionary.family} dictionary of {dictionary.n_latents:,} latents over width {dictionary.d}{settings}{scaled}"


def _provenance(dictionary: Dictionary) -> dict[str, Any]:
    """What opening a file of another project left: what was said, and what is good to know."""
    opened, notes = (dictionary.metadata.get(name) for name in ("opened_from", "notes"))
    return {"opened": opened if isinstance(opened, Mapping) else {}, "notes": notes if isinstance(notes, list) else []}


def _verdict(spec: str, site: str, ev: float, findings: Sequence[Finding], remedies: Sequence[Remedy]) -> str:
    """One sentence: it fits, fits but ..., or does not."""
    place = f"{site} of {spec}"
    wrong = list(dict.fromkeys(finding.about for finding in findings if finding.severity == "wrong"))
    if not wrong:
        warned = list(dict.fromkeys(finding.about for finding in findings if finding.severity == "warning"))
        if ev < rules.LEAST_EV:
            return f"It fits {place}, but loses most of it: it explains {ev:.3f} of the variance."
        if warned:
            return f"It fits {place}, but with {'a warning' if len(warned) == 1 else 'warnings'} ({', '.join(warned)})."
        return f"It fits {place}: it explains {ev:.3f} of the variance."
    if ev >= rules.LEAST_EV and not {remedy.about for remedy in remedies} & set(wrong):
        return f"It does not fit {place} as it is (wrong: {', '.join(wrong)}), though it explains {ev:.3f} of the variance."
    if not remedies or remedies[0].ev < rules.LEAST_EV:
        return f"It does not fit {place}, and nothing that was tried makes it fit."
    best = remedies[0]
    elsewhere = [f"at {best.site}"] * ("site" in best.about)
    otherwise = {"site": [], "k": ["with another k"], "tokens": [best.how]}.get(best.about, ["with another input"])
    return f"It does not fit {place}; {' '.join(elsewhere + otherwise)} it does."
