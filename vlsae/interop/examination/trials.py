"""What if the input were scaled otherwise, or k were another: the same dictionary, used in the ways that users mix up."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.transform import KINDS, InputTransform
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
        remedy: how to make it last, as the end of a sentence.
        reconstruct: tokens `[N, d]` to codes and reconstructions, in the units of the tokens.
    """

    name: str
    about: str
    remedy: str
    reconstruct: Reconstruct


def trials(dictionary: Dictionary, sample: Tensor) -> Iterator[Trial]:
    """All that are tried, for tokens like `sample [N, d]`; on top of what the dictionary does to its input itself."""
    sample = sample.to(dictionary.W_dec)
    for kind in KINDS[1:]:
        yield _behind(dictionary, InputTransform.fit(sample, kind), f"{MEANINGS[kind]} ({kind})",
                      f"set `dictionary.transform = InputTransform.fit(tokens, {kind!r})`")  # fmt: skip
    norm = float(sample.norm(dim=1).mean())
    yield _scaled(dictionary, 1 / max(norm, 1e-12), f"input divided by its mean norm, {norm:.4g}")
    for scale in SCALES:
        yield _scaled(dictionary, scale, f"input times {scale:g}")
    yield from _other_origins(dictionary)
    yield from _other_sparsity(dictionary)


def _behind(dictionary: Dictionary, transform: InputTransform, name: str, remedy: str) -> Trial:
    transform = transform.to(dictionary.W_dec)

    def reconstruct(x: Tensor) -> tuple[Codes, Tensor]:
        codes, xhat = plainly(dictionary)(inner := transform(x))
        return codes, transform.inverse(xhat, like=x) if inner is not x else xhat

    return Trial(name, "input", f"open the file with that input scaling, or {remedy}", reconstruct)


def _scaled(dictionary: Dictionary, scale: float, name: str) -> Trial:
    transform = InputTransform(dictionary.d, "sqrt_d")
    transform.scale.fill_(scale)
    remedy = f"set `dictionary.transform = InputTransform(d, 'sqrt_d')` with `scale` {scale:.4g}"
    return _behind(dictionary, transform, name, remedy)


def _other_origins(dictionary: Dictionary) -> Iterator[Trial]:
    """The decoder's bias taken off before the encoder, or not: libraries differ, and a file seldom says it."""
    if dictionary.transform.kind != "none":
        bare = copy.copy(dictionary)
        bare._modules = {**dictionary._modules, "transform": InputTransform(dictionary.d)}
        yield Trial(f"no input transform ({dictionary.transform.kind} left out)", "input",
                    "open the file without an input scaling", plainly(bare))  # fmt: skip
    elif bool((dictionary.b_dec != 0).any()):
        for sign, name in ((1, "b_dec not taken off before the encoder"), (-1, "b_dec taken off twice")):
            yield Trial(name, "input", "open the file with the other rule for its decoder bias",
                        _moved(dictionary, sign * dictionary.b_dec.detach()))  # fmt: skip


def _moved(dictionary: Dictionary, by: Tensor) -> Reconstruct:
    def reconstruct(x: Tensor) -> tuple[Codes, Tensor]:
        codes = dictionary.encode_sparse(x + by)
        return codes, dictionary.decode(codes, like=x)

    return reconstruct


def _other_sparsity(dictionary: Dictionary) -> Iterator[Trial]:
    if isinstance(threshold := getattr(dictionary, "threshold", None), Tensor) and bool((threshold > 0).any()):
        for factor in FACTORS:
            yield Trial(f"thresholds times {factor:g}", "k", "look for another threshold in the file",
                        plainly(_with_threshold(dictionary, threshold * factor)))  # fmt: skip
    elif isinstance(k := getattr(dictionary, "k", None), int):
        parts = getattr(dictionary, "groups", 1) * getattr(dictionary, "experts", 1)  # k counts within one of them
        most = min(dictionary.n_latents // parts, 2 * dictionary.d)
        for other in sorted({min(most, max(1, round(k * factor))) for factor in FACTORS} - {k}):
            changed = copy.copy(dictionary)
            changed.k = other
            yield Trial(f"k={other}", "k", f"open the file with k={other} where k is yours to say", plainly(changed))


def _with_threshold(dictionary: Dictionary, threshold: Tensor) -> Dictionary:
    """The same weights with another threshold; a copy of a module shares its tables of tensors until they are replaced."""
    changed = copy.copy(dictionary)
    changed._buffers, changed._parameters = dict(dictionary._buffers), dict(dictionary._parameters)
    for table in (changed._buffers, changed._parameters):
        table.pop("threshold", None)
    changed._buffers["threshold"] = threshold.detach()
    return changed


def mean_sparsity(dictionary: Dictionary) -> bool:
    """Whether `k` is a mean over tokens (behind a threshold) rather than a bound for each."""
    return isinstance(dictionary, BatchTopKDictionary)
