"""Another project's tensors as one of our families, exactly: what theirs does and ours does not is worked into weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.checkpoint import CheckpointError, assemble
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DialectError
from vlsae.interop.source import Source

LATENTS = 256  # that are in double precision at a time
FULL = ("float32", "float64", "float", "double")  # torch's names


def build(
    source: Source, family: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None,
    transform: InputTransform | None = None, like: str = "W_dec",
) -> Dictionary:  # fmt: skip
    """A dictionary of a family with these weights; `W_dec [n_latents, d]` gives its size.

    Args:
        source: for messages.
        family: of ours.
        tensors: by our names, every one that the family has (tensors of the transform apart).
        settings: constructor arguments.
        transform: what happens to inputs first.
        like: the tensor `[n_latents, d]` that gives the size, of a family that has no `W_dec` of its own.

    Raises:
        DialectError: for tensors whose shapes do not fit each other, or settings that the family refuses.
    """
    shape = tensors[like].shape
    if len(shape) != 2:
        raise DialectError(f"{source.weights}: the decoder has shape {tuple(shape)}; expected a matrix.")
    n, d = shape
    k = (settings or {}).get("k", 1)
    if type(k) is not int:
        raise DialectError(f"{source.weights}: k={k!r} is no number of latents; give a whole number.")
    transform = transform or InputTransform(d)
    inner = {f"transform.{name}": value for name, value in transform.state_dict().items()}
    try:
        return assemble(family, d, n, settings or {}, transform.kind, {**tensors, **inner})
    except CheckpointError as error:
        raise DialectError(f"{source.weights}: {error}") from error


def half_note(source: Source, name: str, project: str) -> list[str]:
    """The note that weights in half precision leave; `name` is a tensor of the file."""
    return precision_note(str(source.values[name].dtype).removeprefix("torch."), project)


def precision_note(dtype: str, project: str) -> list[str]:
    """The same for a type of torch that is known by its name; none for other names."""
    if dtype in FULL or not isinstance(getattr(torch, dtype, None), torch.dtype):
        return []
    return [f"Weights are stored in {dtype}, and {project} computes in it; here they are float32, so that codes differ by its "
            "rounding."]  # fmt: skip


def without_transform(dictionary: Dictionary, project: str) -> Dictionary:
    """The dictionary, or where it has an input transform a copy with it folded into the weights.

    Args:
        dictionary: to be written.
        project: whose format cannot state a transform, for the message.

    Raises:
        DialectError: where folding cannot be exact.
    """
    if dictionary.transform.kind == "none":
        return dictionary
    plain = copy.deepcopy(dictionary)
    try:
        plain.fold_transform()
    except ValueError as error:
        raise DialectError(f"{project} has no input transforms, and this one stays: {error}") from error
    return plain


def bias_of_raw_input(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """The `b_enc` for which `(x - b_dec) W_enc + b_enc` is what an encoder computes that does not take `b_dec` off.

    `b_enc + b_dec W_enc`, in double precision.
    """
    return (b_enc.double() + read_by(W_enc, b_dec)).float()


def read_by(W_enc: Tensor, x: Tensor) -> Tensor:
    """`x W_enc` in double precision, which a few latents at a time have rather than a copy of the matrix."""
    x, read = x.double(), torch.empty(W_enc.shape[1], dtype=torch.float64)
    for into, columns in zip(read.split(LATENTS), W_enc.split(LATENTS, dim=1), strict=True):
        into.copy_(x @ columns.double())
    return read


def rescaled(tensors: Mapping[str, Tensor], scale: float | Tensor) -> dict[str, Tensor]:
    """Weights for inputs `u` that give the codes of `scale u`, and reconstructions divided by `scale`.

    `(s u - b_dec) W_enc = (u - b_dec / s) (s W_enc)`; `W_enc`, `W_dec` and `b_dec` change, codes and thresholds do not.
    """
    changed = {"W_enc": tensors["W_enc"] * scale} if "W_enc" in tensors else {}
    return {**tensors, **changed, "W_dec": tensors["W_dec"] / scale, "b_dec": tensors["b_dec"] / scale}


def codes_times(tensors: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """The same reconstruction with each latent's codes times a positive factor, `factors [n_latents]`."""
    grown = {name: tensors[name] * factors for name in ("W_enc", "b_enc", "b_mag", "threshold") if name in tensors}
    return {**tensors, **grown, "W_dec": tensors["W_dec"] / factors[:, None]}


def float64_product(a: Tensor, b: Tensor) -> Tensor:
    """`a b`, rounded once."""
    return torch.matmul(a.double(), b.double()).float()


def raw_inputs(tensors: Mapping[str, Tensor], transform: InputTransform, subtracts: bool = True) -> dict[str, Tensor]:
    """Weights, in double precision, that give the same codes without an affine input transform before them.

    `((x - m) s - b_dec) W_enc = (x - (b_dec / s + m)) (s W_enc)`, and an encoder that does not take `b_dec` off keeps
    `m s W_enc` in `b_enc`. Reconstructions are those in the units of the activations; codes and thresholds stay.

    Args:
        tensors: weights of a linear encoder.
        transform: "none" or affine.
        subtracts: whether the encoder takes `b_dec` off.
    """
    changed = {name: value.double() for name, value in tensors.items()}
    if transform.kind == "none":
        return changed
    mean, scale = transform.mean.detach().cpu().double(), transform.scale.detach().cpu().double()
    changed["W_enc"] = changed["W_enc"] * scale[:, None]
    changed["W_dec"] = changed["W_dec"] / scale
    changed["b_dec"] = changed["b_dec"] / scale + mean
    if not subtracts:
        changed["b_enc"] = changed["b_enc"] - mean @ changed["W_enc"]
    return changed
