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
from vlsae.interop.examination.diagnosis import Finding
from vlsae.interop.examination.fit import Fit, fit

POLICIES = ("patches", "cls", "patches+cls", "all", "random_k")
PROBED = 8  # patches an image on which sites and trials are compared, of few images
COMPARED = 1024  # such patches of all images, at most: dozens of sites and trials each encode them all


def token_places(model: Backbone, place: Site | None, policy: Any) -> tuple[list[int], list[str]]:
    """Which tokens of an image are looked at, and the role of each."""
    if place is not None and place.stream == "pooled":
        return [0], ["pooled"]
    kept = select_roles(policy if policy in POLICIES else "patches+cls", model.token_roles)
    return kept, [model.token_roles[i] for i in kept]


def probe_places(roles: Sequence[str], n_images: int, seed: int) -> list[int]:
    """Positions among tokens of these roles of the few that comparisons use: some patches, and all that are none."""
    patches = where(roles, "patch")
    few = np.random.default_rng(seed).permutation(patches)[: max(1, min(PROBED, COMPARED // n_images))].tolist()
    return sorted({*few, *(i for i, role in enumerate(roles) if role != "patch")})


def where(roles: Sequence[str], role: str) -> list[int]:
    """Positions of a role."""
    return [i for i, other in enumerate(roles) if other == role]


def best_ev(dictionary: Dictionary, x: Tensor, roles: Sequence[str]) -> float:
    """Explained variance of the kind of token that a dictionary explains best, of tokens `x [I, P, d]` of these roles."""
    return max(known(fit(dictionary, x[:, where(roles, role)]).ev) for role in dict.fromkeys(roles))


def known(ev: float) -> float:
    """The number, below all others where it does not exist."""
    return ev if np.isfinite(ev) else -np.inf


def judged_roles(policy: Any, fits: Mapping[str, Fit]) -> tuple[list[str], Finding]:
    """The kinds of token that a dictionary is for, and how one knows.

    Args:
        policy: what it was trained on, as `extract` names it; anything else where nobody knows.
        fits: by role.
    """
    if list(fits) == ["pooled"]:
        return ["pooled"], Finding(
            "ok", "tokens", "It was judged on the pooled embedding, one vector an image or text."
        )
    if policy in POLICIES:
        return list(fits), Finding(
            "ok", "tokens", f"It was judged on {' and '.join(fits)} tokens, for which it is said to be."
        )
    best = max(fits, key=lambda role: known(fits[role].ev))
    each = " and ".join(f"{found.ev:.3f} of {role} tokens" for role, found in fits.items())
    severity = "warning" if len(fits) > 1 else "ok"
    return [best], Finding(severity, "tokens", f"Nothing says for which tokens it was trained; it explains {each}, "
                           f"and was judged on {best} tokens. Use it on these.")  # fmt: skip
