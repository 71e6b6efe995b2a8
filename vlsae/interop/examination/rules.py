"""When a number is a finding: the bounds, with their reasons, and the sentences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.backbones.base import Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination.diagnosis import Finding
from vlsae.interop.examination.fit import Fit
from vlsae.interop.examination.trials import mean_sparsity, trained_k

LEAST_EV = 0.5  # below, most of what the model computes at the site is not in the codes
GAIN = 0.05  # explained variance: what other images of the same kind do not explain
L0_FACTOR = 2.0  # of k behind a threshold: other images move the mean by tens of percent, not by this
UNIT_FACTOR = 8.0  # of k: no images move the mean so far; the number means something else
SILENT, MOSTLY = 0.01, 0.5  # share of tokens without a code; share that is most
STRETCH = 2.0  # factor by which shrinkage does not explain wrong lengths
UNIT_NORM = 1e-3  # rounding of weights kept in 16 bits


def severity_of_gain(here: float, there: float) -> str:
    """How serious it is that another use of the dictionary explains more.

    "ok" for a gain below .05, or to below 0, where the mean token is still better. "wrong" where here is below .5, or where
    the other use halves what is unexplained, which a neighbouring choice does not; else "warning".

    Example:
        >>> [severity_of_gain(*evs) for evs in ((0.80, 0.82), (-2, -1), (0.70, 0.78), (0.70, 0.86), (-2, 0.3))]
        ['ok', 'ok', 'warning', 'wrong', 'wrong']
    """
    if not there >= max(0, here + GAIN):
        return "ok"
    return "wrong" if here < LEAST_EV or 1 - there <= (1 - here) / 2 else "warning"


def of_variance(ev: float, on_shuffled: float) -> Finding:
    """Below 0 the mean token is a better answer; what is as good on shuffled coordinates knows nothing of this model."""
    beside = f"it explains {ev:.3f} of the variance, and {on_shuffled:.3f} of tokens with shuffled coordinates"
    if not ev >= 0:
        return Finding("wrong", "variance", f"Explained variance is {ev:.3f}; below 0, answering with the mean token would "
                       f"be better (expected: {LEAST_EV} or more). Check model, site, tokens and input scaling.")  # fmt: skip
    if ev < on_shuffled + GAIN:
        return Finding("wrong" if ev < LEAST_EV else "warning", "variance", f"No sign that it was made for these tokens: "
                       f"{beside}, where {GAIN} more is expected. Check the model and the order of coordinates.")  # fmt: skip
    if ev < LEAST_EV:
        return Finding("warning", "variance", f"Much is lost: {beside}; below {LEAST_EV} most of what the model computes is "
                       "not in the codes. Use it with its error kept, or another dictionary.")  # fmt: skip
    return Finding("ok", "variance", f"{beside[0].upper()}{beside[1:]} ({LEAST_EV} or more is expected).")


def of_model(dictionary: Dictionary, model: Backbone) -> Finding:
    known, weights = dictionary.metadata.get("model"), dictionary.metadata.get("weight_hash")
    if known is None:
        return Finding("ok", "model", f"Nothing says on which model it was trained; it was held against {model.spec}.")
    if isinstance(weights, str):
        if weights == model.weight_hash:
            return Finding("ok", "model", f"It was trained on these very weights ({model.spec}).")
        return Finding("warning", "model", f"It was trained on {known} with weights {weights}; {model.spec} has "
                       f"{model.weight_hash}. Open the model that it was trained on, unless this is on purpose.")  # fmt: skip
    if known != model.spec:
        return Finding("warning", "model", f"It was trained on {known} and examined on {model.spec}; where these are not two "
                       f"names of one model, give --model {known}.")  # fmt: skip
    return Finding("ok", "model", f"It was trained on {known}, which it was examined on.")


def k_is_known(dictionary: Dictionary) -> bool:
    """Whether k, or the threshold, is that of training: by its recipe, or since another project's file says it."""
    if (trained := trained_k(dictionary)) is not None:
        return trained == getattr(dictionary, "k", None)
    opened = dictionary.metadata.get("opened_from")
    told = opened.get("told", {}) if isinstance(opened, Mapping) else {"k": None}
    return not {"k", "threshold"} & set(told)


def of_sparsity(dictionary: Dictionary, fit: Fit) -> list[Finding]:
    """L0 against k; a bound for each token, or a mean over tokens behind a threshold."""
    l0, k = float(fit.l0.double().mean()), getattr(dictionary, "k", None)
    low, high = (int(fit.l0.double().quantile(q)) for q in (0.05, 0.95))
    spread = f"{l0:.1f} latents are active a token (5 to 95 % of tokens: {low} to {high})"
    silent = float((fit.l0 == 0).double().mean())
    found = [_recipe(dictionary, k)] if k is not None else []
    if k is None:
        dense = l0 > dictionary.d / 2
        found.append(Finding("warning" if dense else "ok", "sparsity", f"{spread}; " + (
            f"codes of more than d / 2 = {dictionary.d / 2:g} are not sparse. Check thresholds and input scaling." if dense
            else f"well below d / 2 = {dictionary.d / 2:g}, so codes are sparse.")))  # fmt: skip
    elif mean_sparsity(dictionary):
        found.append(_mean_k(l0, k, spread))
    else:
        found.append(_bounded_k(dictionary, fit, l0, k, spread))
    if silent > SILENT:
        found.append(Finding("wrong" if silent > MOSTLY else "warning", "silence", f"{silent:.1%} of tokens have no code at "
                     f"all (expected: below {SILENT:.0%}). Check the input scaling and thresholds."))  # fmt: skip
    return [finding for finding in found if finding is not None]


def _recipe(dictionary: Dictionary, k: int) -> Finding | None:
    trained = trained_k(dictionary)
    if trained in (None, k):
        return None
    return Finding("warning", "sparsity", f"It was trained with k={trained} and encodes with k={k}; open it with k={trained}, "
                   "unless this is on purpose.")  # fmt: skip


def _mean_k(l0: float, k: int, spread: str) -> Finding:
    ratio = max(l0, 1e-12) / k
    if 1 / L0_FACTOR <= ratio <= L0_FACTOR:
        return Finding("ok", "sparsity", f"{spread}; k={k} is the mean over tokens in training, and within a factor of "
                       f"{L0_FACTOR:g} is expected.")  # fmt: skip
    severity = "warning" if 1 / UNIT_FACTOR <= ratio <= UNIT_FACTOR else "wrong"
    why = ("its threshold is too high for these tokens, or k counts the active latents of a whole batch" if ratio < 1
           else "its threshold is too low for these tokens, or missing")  # fmt: skip
    return Finding(severity, "sparsity", f"{spread}, but k={k} on average were wanted (a factor of {L0_FACTOR:g} is expected): "
                   f"{why}. Check the input scaling, the threshold, and whether k is per token.")  # fmt: skip


def _bounded_k(dictionary: Dictionary, fit: Fit, l0: float, k: int, spread: str) -> Finding:
    most = k * getattr(dictionary, "groups", 1)
    if int(fit.l0.max()) > most:
        return Finding("wrong", "sparsity", f"{int(fit.l0.max())} latents are active on some token, but k={k} allows {most}; "
                       "the family is not what computes these codes. Say another when opening it.")  # fmt: skip
    if l0 < k / L0_FACTOR:
        return Finding("warning", "sparsity", f"{spread}, though k={k} may be (half of it is expected): most of the k largest "
                       "are not positive. Check k and the input scaling.")  # fmt: skip
    return Finding("ok", "sparsity", f"{spread}; k={k} may be, and never more are.")


def of_dead(n_latents: int, fit: Fit) -> Finding:
    """A latent that fires at a rate of 3 / n is missed by n tokens with probability 5 % (rule of three)."""
    dead, n = int((~fit.fired).sum()), len(fit.l0)
    text = f"{dead:,} of {n_latents:,} latents ({dead / n_latents:.1%}) never fired on these {n:,} tokens"
    if dead > MOSTLY * n_latents:
        return Finding("wrong" if dead == n_latents else "warning", "dead", f"{text}, more than {MOSTLY:.0%}; those that fire "
                       f"on fewer than one token in {max(1, n // 3):,} may be among them. Take more --images, then check the "
                       "input scaling.")  # fmt: skip
    return Finding("ok", "dead", f"{text} (expected: below {MOSTLY:.0%}; the fewer tokens, the more seem dead).")


def of_norms(dictionary: Dictionary, norms: Tensor) -> Finding:
    low, middle, high = (float(value) for value in (norms.min(), norms.median(), norms.max()))
    if max(abs(low - 1), abs(high - 1)) <= UNIT_NORM:
        return Finding("ok", "norms", "All atoms have norm 1, so that codes of different latents can be compared.")
    text = f"Norms of atoms lie between {low:.3g} and {high:.3g} (median {middle:.3g})"
    wanted = f" where {dictionary.family!r} is trained with norm 1 (to {UNIT_NORM:g})" if dictionary.unit_atoms else ""
    return Finding("warning" if wanted or low == 0 else "ok", "norms", f"{text}{wanted}; compare latents by code times "
                   "norm, not by code.")  # fmt: skip


def of_signs(dictionary: Dictionary, fit: Fit) -> Finding | None:
    if dictionary.signed:
        return Finding("ok", "signs", f"{fit.negative:.1%} of codes are negative, as codes of {dictionary.family!r} may be; a "
                       "latent stands for two opposite directions.")  # fmt: skip
    if fit.negative == 0:
        return None
    return Finding("wrong", "signs", f"{fit.negative:.1%} of codes are negative, but those of {dictionary.family!r} cannot be; "
                   "the family is not what computes these codes. Say another when opening it.")  # fmt: skip


def pairing(dictionary: Dictionary) -> tuple[float, float, float] | None:
    """Mean cosine of a latent's reading and writing direction, that of shuffled pairs, and 4 of its standard errors."""
    W_enc = getattr(dictionary, "W_enc", None)
    if not isinstance(W_enc, Tensor) or W_enc.shape != (dictionary.d, dictionary.n_latents) or dictionary.n_latents < 2:
        return None
    reads, writes = F.normalize(W_enc.detach().T.float(), dim=1), F.normalize(dictionary.atoms.float(), dim=1)
    own, other = (reads * writes).sum(1), (reads * writes.roll(1, 0)).sum(1)
    return float(own.mean()), float(other.mean()), 4 * float(other.std()) / dictionary.n_latents**0.5


def of_pairing(found: tuple[float, float, float] | None, ev: float) -> Finding | None:
    """Encoder and decoder of one latent point the same way, more than those of two latents do."""
    if found is None:
        return None
    own, other, error = found
    text = f"reading and writing directions of one latent have a mean cosine of {own:.3f}, of two latents {other:.3f}"
    if own > other + error:
        return Finding("ok", "pairing", f"{text[0].upper()}{text[1:]}, so that encoder and decoder belong together.")
    return Finding("wrong" if ev < LEAST_EV else "warning", "pairing", f"Encoder and decoder do not belong together: {text}, "
                   f"where {error:.3f} more is expected. Check whether rows were permuted or a matrix reshaped.")  # fmt: skip


def of_lengths(fit: Fit) -> Finding | None:
    if not torch.isfinite(torch.tensor(fit.stretch)):
        return Finding("wrong", "lengths", "Reconstructions are not correlated with the tokens at all; check model, site and "
                       "order of coordinates.")  # fmt: skip
    if 1 / STRETCH <= fit.stretch <= STRETCH:
        return None
    return Finding("warning", "lengths", f"Reconstructions have {fit.stretch:.3g} times the length that would be right (at "
                   f"most {STRETCH:g} times is expected). Check the input scaling and the norms of atoms.")  # fmt: skip


def of_origin(dictionary: Dictionary, mean_norm: float, token_norm: float, distance: float | None) -> Finding:
    """The tokens' mean against the decoder's bias, both in the units of the activations."""
    text = f"tokens have a mean norm of {token_norm:.4g}, and their mean one of {mean_norm:.4g}"
    zero = dictionary.transform.kind in ("none", "sqrt_d") and not bool((dictionary.b_dec != 0).any())
    if zero and mean_norm > MOSTLY * token_norm:
        return Finding("warning", "origin", f"The decoder's bias is 0, but {text} (more than {MOSTLY:.0%} of it): it was "
                       "trained on centred tokens, or lost it. Look at what it explains with the mean taken off.")  # fmt: skip
    beside = f"; the decoder's bias is {distance:.2f} of that away from it" if distance is not None else ""
    return Finding("ok", "origin", f"{text[0].upper()}{text[1:]}{beside}.")
