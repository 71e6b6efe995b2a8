"""What if the input were scaled otherwise, or k were another: the same dictionary, used in the ways that users mix up."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.transform import AFFINE, KINDS, InputTransform
from vlsae.interop.examination.fit import Reconstruct, plainly

SCALES = (0.01, 0.1, 0.25, 0.5, 2.0, 4.0, 10.0, 100.0)
FACTORS = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)  # of k, and of a threshold
MEANINGS = {
    "centre": "the mean taken off",
    "sqrt_d": "tokens scaled to a mean norm of sqrt(d)",
    "centre_sqrt_d": "the mean taken off, then a mean norm of sqrt(d)",
    "scalar": "one mean and one deviation for all coordinates",
    "standardise": "each coordinate standardised",
    "unit": "each token at norm 1",
    "layer_norm": "each token layer-normed",
    "layer_norm_unbiased": "each token layer-normed, d - 1 in its deviation",
}


@dataclass(frozen=True, eq=False)
class Trial:
    """One other way to use a dictionary.

    Attributes:
        name: of the change, after "with"; about: "input" or "k".
        remedy: lines of Python that make it last for a dictionary `sae`; some read `tokens [N, d]` of the site.
        reconstruct: tokens `[N, d]` to codes and reconstructions, in the units of the tokens.
        k: the other k, where that is the change.
    """

    name: str
    about: str
    remedy: tuple[str, ...]
    reconstruct: Reconstruct
    k: int | None = None


def trials(dictionary: Dictionary, sample: Tensor) -> Iterator[Trial]:
    """All that are tried, for tokens like `sample [N, d]`; another input takes the place of the dictionary's own."""
    sample = sample.to(dictionary.W_dec)
    own = dictionary.transform
    for kind in KINDS[1:]:
        if kind == own.kind and not own.affine:
            continue  # the same again: nothing in it is of the data
        of_data = f"InputTransform.fit(tokens, {kind!r})" if kind in AFFINE else f"InputTransform(sae.d, {kind!r})"
        yield _behind(dictionary, InputTransform.fit(sample, kind), f"{MEANINGS[kind]} ({kind})",
                      f"sae.transform = {of_data}")  # fmt: skip
    if own.kind == "none":
        norm = float(sample.norm(dim=1).mean())
        yield _scaled(dictionary, 1 / max(norm, 1e-12), f"input divided by its mean norm, {norm:.4g}")
    if own.affine:
        for scale in SCALES:
            yield _scaled(dictionary, scale, f"input {'' if own.kind == 'none' else 'scale '}times {scale:g}")
    yield from _other_origins(dictionary)
    yield from _other_sparsity(dictionary)


def _behind(dictionary: Dictionary, transform: InputTransform, name: str, *remedy: str) -> Trial:
    """The same weights behind another transform; a copy of a module shares its tables until they are replaced."""
    changed = copy.copy(dictionary)
    changed._modules = {**dictionary._modules, "transform": transform.to(dictionary.W_dec)}
    return Trial(name, "input", remedy, plainly(changed))


def _scaled(dictionary: Dictionary, scale: float, name: str) -> Trial:
    """A constant on the input, or on top of the one that it has; means are taken off before."""
    if dictionary.transform.kind == "none":
        transform = InputTransform(dictionary.d, "sqrt_d")
        transform.scale.fill_(scale)
        return _behind(dictionary, transform, name, "sae.transform = InputTransform(sae.d, 'sqrt_d')",
                       f"sae.transform.scale.fill_({scale:.6g})")  # fmt: skip
    transform = copy.deepcopy(dictionary.transform)
    transform.scale.mul_(scale)
    return _behind(dictionary, transform, name, f"sae.transform.scale.mul_({scale:.6g})")


def _other_origins(dictionary: Dictionary) -> Iterator[Trial]:
    """The decoder's bias taken off before the encoder, or not: libraries differ, and a file seldom says it."""
    if dictionary.transform.kind != "none":
        yield _behind(dictionary, InputTransform(dictionary.d), f"no input transform ({dictionary.transform.kind} left out)",
                      "sae.transform = InputTransform(sae.d)")  # fmt: skip
    elif bool((dictionary.b_dec != 0).any()):
        for sign, name in ((1, "b_dec not taken off before the encoder"), (-1, "b_dec taken off twice")):
            remedy = f"sae.b_enc.data {'+' if sign > 0 else '-'}= sae.b_dec.data @ sae.W_enc.data"
            yield Trial(name, "input", (remedy,) if _shifts(dictionary) else (),
                        _moved(dictionary, sign * dictionary.b_dec.detach()))  # fmt: skip


def _shifts(dictionary: Dictionary) -> bool:
    """Whether `b_enc` is added to what the encoder reads, and nowhere else, so that it can hold a shift of the input."""
    family = type(dictionary)
    plain = family._encode is Dictionary._encode and family.pre is Dictionary.pre
    return plain and hasattr(dictionary, "b_enc") and dictionary.family != "gated"  # whose magnitudes leave it out


def _moved(dictionary: Dictionary, by: Tensor) -> Reconstruct:
    def reconstruct(x: Tensor) -> tuple[Codes, Tensor]:
        codes = dictionary.encode_sparse(x + by)
        return codes, dictionary.decode(codes, like=x)

    return reconstruct


def _other_sparsity(dictionary: Dictionary) -> Iterator[Trial]:
    if isinstance(threshold := getattr(dictionary, "threshold", None), Tensor) and bool((threshold > 0).any()):
        for factor in FACTORS:
            yield Trial(f"thresholds times {factor:g}", "k", (f"sae.threshold.data.mul_({factor:g})",),
                        plainly(_with_threshold(dictionary, threshold * factor)))  # fmt: skip
    elif isinstance(k := getattr(dictionary, "k", None), int):
        parts = getattr(dictionary, "groups", 1) * getattr(dictionary, "experts", 1)  # k counts within one of them
        most = min(dictionary.n_latents // parts, 2 * dictionary.d)
        wanted = {min(most, max(1, round(k * factor))) for factor in FACTORS} | {trained_k(dictionary) or k}
        for other in sorted(wanted - {k}):
            changed = copy.copy(dictionary)
            changed.k = other
            yield Trial(f"k={other}", "k", (f"sae.k = {other}",), plainly(changed), other)


def trained_k(dictionary: Dictionary) -> int | None:
    """The k of the recipe that it was trained with, where it has one that can be used."""
    recipe = dictionary.metadata.get("recipe")
    k = recipe.get("k") if isinstance(recipe, Mapping) else None
    return k if isinstance(k, int) and 1 <= k <= dictionary.n_latents else None


def _with_threshold(dictionary: Dictionary, threshold: Tensor) -> Dictionary:
    """The same weights with another threshold."""
    changed = copy.copy(dictionary)
    changed._buffers, changed._parameters = dict(dictionary._buffers), dict(dictionary._parameters)
    for table in (changed._buffers, changed._parameters):
        table.pop("threshold", None)
    changed._buffers["threshold"] = threshold.detach()
    return changed


def mean_sparsity(dictionary: Dictionary) -> bool:
    """Whether `k` is a mean over tokens (behind a threshold) rather than a bound for each."""
    return isinstance(dictionary, BatchTopKDictionary)
