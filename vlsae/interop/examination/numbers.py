"""The numbers of a diagnosis, each with its definition and what stands beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination import rules
from vlsae.interop.examination.comparison import Comparison
from vlsae.interop.examination.fit import Fit, interval
from vlsae.interop.examination.roles import known
from vlsae.interop.examination.trials import mean_sparsity
from vlsae.metrics.result import Metric


def numbers_of(dictionary: Dictionary, x: Tensor, whole: Fit, compared: Comparison) -> dict[str, Metric]:
    """All metrics: `whole` is the fit to the judged tokens `x [I, P, d]`, `compared` the baselines on fewer of them."""
    n, elsewhere = len(whole.l0), {s: f.ev for s, f in compared.sites.items() if s != compared.own}
    beside = {"on tokens with shuffled coordinates": compared.shuffled.ev}
    if elsewhere:
        best = max(elsewhere, key=lambda site: known(elsewhere[site]))
        beside[f"at {best}, the best other site"] = elsewhere[best]
    mean, norms = x.double().mean((0, 1)), dictionary.atoms.float().norm(dim=1).cpu()
    values: list[tuple[str, float, int, str, bool | None]] = [
        ("l0", whole.mean_l0, n, "mean number of active latents a token", None),
        ("l0_p5", float(whole.l0.double().quantile(0.05)), n, "5 % of tokens have at most so many", None),
        ("l0_p95", float(whole.l0.double().quantile(0.95)), n, "95 % of tokens have at most so many", None),
        ("l0_max", float(whole.l0.max()), n, "most active latents of a token", None),
        ("silent", float((whole.l0 == 0).double().mean()), n, "share of tokens without an active latent", False),
        ("dead", float((~whole.fired).double().mean()), n, "share of latents active on none of these tokens", False),
        ("negative", whole.negative, n, "share of codes below 0", None),
        (
            "stretch",
            whole.stretch,
            n,
            "E||r||^2 / E<x, r>, both centred: 1 where lengths are right",
            None,
        ),
        ("atom_norm_min", float(norms.min()), len(norms), "smallest ||W_dec_i||", None),
        ("atom_norm_median", float(norms.median()), len(norms), "median ||W_dec_i||", None),
        ("atom_norm_max", float(norms.max()), len(norms), "largest ||W_dec_i||", None),
        ("token_norm", float(x.norm(dim=-1).double().mean()), n, "mean of ||x||", None),
        ("mean_norm", float(mean.norm()), n, "||mean of x||", None),
    ]
    if (origin := origin_of(dictionary)) is not None:
        values.append(("origin_distance", float((origin - mean).norm() / mean.norm().clamp_min(1e-12)), n,
                       "||b - mean|| / ||mean||, b the decoder's bias in the units of x", None))  # fmt: skip
    ev = Metric("ev_centred", whole.ev, n, "1 - sum ||x - xhat||^2 / sum ||x - mean||^2, 95 % interval over images",
                ci=interval(whole.sums.ev(compared.weights)), baselines=beside)  # fmt: skip
    others = {name: Metric(name, value, m, text, higher_is_better=higher) for name, value, m, text, higher in values}
    return {"ev_centred": ev, **others}


def expected(dictionary: Dictionary) -> dict[str, str]:
    """Bounds of these numbers in words, by name; reasons are where the bounds are."""
    k, half = getattr(dictionary, "k", None), dictionary.d / 2
    if k is None:
        active = f"below {half:g}, half the width"
    elif mean_sparsity(dictionary):
        active = f"{k / rules.L0_FACTOR:g} to {k * rules.L0_FACTOR:g} (k = {k} on average)"
    else:
        active = f"at most {k * getattr(dictionary, 'groups', 1)} (k)"
    return {
        "ev_centred": f"{rules.LEAST_EV:g} or more", "l0": active, "silent": f"below {100 * rules.SILENT:g}",
        "dead": f"below {100 * rules.MOSTLY:g}", "stretch": f"{1 / rules.STRETCH:g} to {rules.STRETCH:g}",
        **({"atom_norm_median": "1"} if dictionary.unit_atoms else {}),
    }  # fmt: skip


@torch.no_grad()
def origin_of(dictionary: Dictionary) -> Tensor | None:
    """The decoder's bias in the units of the activations; None behind a transform of each token."""
    if not dictionary.transform.affine:
        return None
    origin = dictionary.transform.inverse(dictionary.b_dec.detach()).double().cpu()
    return origin if bool(np.isfinite(origin.numpy()).all()) else None
