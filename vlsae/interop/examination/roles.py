"""Which tokens of an image a dictionary is for: what it says, else what it explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vlsae.activations.format import select_roles
from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination.diagnosis import Finding, Remedy
from vlsae.interop.examination.fit import Fit, fit
from vlsae.interop.examination.rules import LEAST_EV

POLICIES = ("patches", "cls", "patches+cls", "all", "random_k")
ONLY = {"patch": "patches", "cls": "cls"}  # policies of one kind of token, as far as these are read unasked
PROBED = 8  # patches an image on which sites and trials are compared, of few images
COMPARED = 1024  # such patches of all images, at most: dozens of sites and trials each encode them all


def token_places(model: Backbone, place: Site | None, policy: Any) -> tuple[list[int], list[str]]:
    """Which tokens of an image are looked at, and the role of each: what it is for may not be what it is said to be for."""
    if place is not None and place.stream == "pooled":
        return [0], ["pooled"]
    kept = {*select_roles("patches+cls", model.token_roles)}
    if policy in POLICIES:
        kept |= {*select_roles(policy, model.token_roles)}
    return sorted(kept), [model.token_roles[i] for i in sorted(kept)]


def probe_places(roles: Sequence[str], n_images: int, seed: int) -> list[int]:
    """Positions among tokens of these roles of the few that comparisons use: some patches, and all that are none."""
    patches = where(roles, "patch")
    few = np.random.default_rng(seed).permutation(patches)[: max(1, min(PROBED, COMPARED // n_images))].tolist()
    return sorted({*few, *(i for i, role in enumerate(roles) if role != "patch")})


def where(roles: Sequence[str], role: str) -> list[int]:
    """Positions of a role."""
    return [i for i, other in enumerate(roles) if other == role]


def wanted_roles(policy: Any, roles: Sequence[str]) -> list[str]:
    """Which of these roles a policy, as `extract` names it, keeps; all of them where it is none."""
    kinds = list(dict.fromkeys(roles))
    return [kinds[i] for i in select_roles(policy, kinds)] if policy in POLICIES and kinds != ["pooled"] else kinds


def best_ev(dictionary: Dictionary, x: Tensor, roles: Sequence[str], wanted: Sequence[str]) -> float:
    """Explained variance of the wanted kind of token that it explains best, of tokens `x [I, P, d]` of these roles."""
    return max(known(fit(dictionary, x[:, where(roles, role)]).ev) for role in wanted)


def known(ev: float) -> float:
    """The number, below all others where it does not exist."""
    return ev if np.isfinite(ev) else -np.inf


def judged_roles(policy: Any, fits: Mapping[str, Fit]) -> list[str]:
    """The kinds of token that a dictionary is for: as the policy says, else the one that it explains best."""
    wanted = wanted_roles(policy, list(fits))
    return wanted if policy in POLICIES else [max(fits, key=lambda role: known(fits[role].ev))]


def finding_of_roles(
    policy: Any, judged: Sequence[str], ev: float, fits: Mapping[str, Fit], site: str
) -> tuple[Finding, list[Remedy]]:
    """How one knows what it is for, and whether it is for other tokens, which is sure only where it explains most of those.

    Args:
        policy: what it was trained on; anything else where nobody knows.
        judged: by `judged_roles`; ev: what is explained of these; fits: by role; site: where.
    """
    if list(fits) == ["pooled"]:
        return Finding("ok", "tokens", "It was judged on the pooled embedding, one vector an image or text."), []
    if policy not in POLICIES:
        each = " and ".join(f"{found.ev:.3f} of {role} tokens" for role, found in fits.items())
        return Finding("warning" if len(fits) > 1 else "ok", "tokens", f"Nothing says for which tokens it was trained; it "
                       f"explains {each}, and was judged on {judged[0]} tokens. Use it on these."), []  # fmt: skip
    said = f"{' and '.join(judged)} tokens, for which it is said to be"
    others = [role for role in fits if role not in judged and fits[role].ev >= LEAST_EV]
    if ev >= LEAST_EV or not others:
        return Finding("ok", "tokens", f"It was judged on {said}."), []
    role = max(others, key=lambda role: fits[role].ev)
    text = f"It explains {ev:.3f} of {said}, but {fits[role].ev:.3f} of {role} tokens. Use it on these."
    lines = (f"sae.metadata['tokens'] = {ONLY[role]!r}",)
    return Finding("wrong", "tokens", text), [Remedy("tokens", f"on {role} tokens", fits[role].ev, site, lines)]
