"""A dictionary of ours as the folder that SAELens itself would write, with the same codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DialectError
from vlsae.interop.weights import raw_inputs, rescaled

VERSION = "6.0.0"  # the generation of the format; SAELens converts anything older
NORMALISE = {"layer_norm_unbiased": "layer_norm", "unit": "constant_norm_rescale"}
Parts = tuple[str, dict[str, Any], tuple[str, ...]]  # architecture, its own fields, tensors beside the usual four


def write_saelens(dictionary: Dictionary, folder: Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` for inference, which `SAE.load_from_disk` opens with equal codes.

    Raises:
        DialectError: for a family or an input transform that SAELens does not have.
    """
    if dictionary.family not in WRITERS:
        raise DialectError(
            f"SAELens has no architecture for {dictionary.family!r}; it can express {', '.join(sorted(WRITERS))}."
        )
    architecture, fields, more = WRITERS[dictionary.family](dictionary)
    subtracts = fields.get("apply_b_dec_to_input", True)
    pursuit = architecture == "matching_pursuit"
    tensors = _tensors(dictionary, () if pursuit else ("W_enc", "b_enc", *more))
    normalise, tensors = _normalised(dictionary, tensors, pursuit, subtracts)
    if architecture == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "sae_weights.safetensors") as partial:
        save_file({name: value.float().contiguous() for name, value in tensors.items()}, partial)
    config = {
        "architecture": architecture, "d_in": dictionary.d, "d_sae": dictionary.n_latents, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": normalise,
        "reshape_activations": "none", **fields, "metadata": _metadata(dictionary),
    }  # fmt: skip
    with replacing(folder / "cfg.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _tensors(dictionary: Dictionary, names: tuple[str, ...]) -> dict[str, Tensor]:
    found = {name: getattr(dictionary, name).detach().cpu().double() for name in (*names, "W_dec", "b_dec")}
    if dictionary.family == "batch_norm_topk":
        gain, shift, mean, var = (
            getattr(dictionary, name).detach().cpu().double()
            for name in ("gain", "shift", "running_mean", "running_var")
        )
        stretch = gain / (var + dictionary.epsilon).sqrt()
        found["W_enc"] = found["W_enc"] * stretch
        found["b_enc"] = (found["b_enc"] - mean) * stretch + shift
    return found


def _normalised(
    dictionary: Dictionary, tensors: dict[str, Tensor], pursuit: bool, subtracts: bool
) -> tuple[str, dict[str, Tensor]]:
    """SAELens' name of what happens to inputs first, and weights for it."""
    transform = dictionary.transform
    if transform.affine and not pursuit:
        return "none", raw_inputs(tensors, transform, subtracts)
    if transform.kind in ("none", "centre"):
        mean = transform.mean.detach().cpu().double() if transform.kind == "centre" else 0.0
        return "none", {**tensors, "b_dec": tensors["b_dec"] + mean}
    _refuse_transform(dictionary, transform, pursuit, subtracts)
    if transform.kind == "unit":
        tensors = rescaled(tensors, dictionary.d**-0.5)
    return NORMALISE[transform.kind], tensors


def _refuse_transform(dictionary: Dictionary, transform: InputTransform, pursuit: bool, subtracts: bool) -> None:
    if not subtracts:
        why = "SAELens undoes it on the output of no transcoder"
    elif transform.kind == "layer_norm":
        why = "SAELens divides by another deviation (layer_norm_unbiased)"
    elif pursuit and transform.affine:
        why = "pursuit takes its steps over unit atoms; fold_transform() first, which gives codes in the activations' units"
    elif pursuit and transform.kind == "unit":
        why = "SAELens brings vectors to norm sqrt(d) instead, which multiplies the codes of a pursuit"
    else:
        return
    raise DialectError(f"{dictionary.family!r} behind {transform.kind!r} cannot be written for SAELens: {why}.")


def _metadata(dictionary: Dictionary) -> dict[str, Any]:
    """Model and site where SAELens looks for them, and what else is known, which it keeps."""
    known = dict(dictionary.metadata)
    model, site = known.pop("model", None), known.pop("site", None)
    names = {"model_name": model or known.get("model_name"), "hook_name": site or known.get("hook_name")}
    ours = {"family": dictionary.family, "settings": dictionary.settings}
    return {**known, **names, **_training(dictionary), "vlsae_family": ours, "sae_lens_version": VERSION}


def _training(dictionary: Dictionary) -> dict[str, Any]:
    """What SAELens remarks in checkpoints for inference of what it trained over batches."""
    if dictionary.family not in ("batch_topk", "nested_dictionary"):
        return {}
    nested = dictionary.family == "nested_dictionary"
    known = dictionary.metadata.get("training_architecture_details")
    details = {**(known if isinstance(known, dict) else {}), "k": dictionary.k}
    details["matryoshka_widths"] = dictionary.prefixes if nested else None
    named = "matryoshka_batchtopk" if nested else "batchtopk"
    return {"training_architecture": named, "training_architecture_details": details}


def _standard(dictionary: Dictionary) -> Parts:
    return "standard", {}, ()


def _jumprelu(dictionary: Dictionary) -> Parts:
    return "jumprelu", {}, ("threshold",)


def _gated(dictionary: Dictionary) -> Parts:
    return "gated", {}, ("b_mag", "r_mag")


def _topk(dictionary: Dictionary) -> Parts:
    return "topk", {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}, ()


def _abs_topk(dictionary: Dictionary) -> Parts:
    return "abstopk", {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}, ()


def _nested_sparsity(dictionary: Dictionary) -> Parts:
    """All positive codes, or the `cut` largest of them."""
    if not dictionary.cut:
        return "standard", {}, ()
    return "topk", {"k": dictionary.cut, "rescale_acts_by_decoder_norm": False}, ()


def _transcoder(dictionary: Dictionary) -> Parts:
    """SAELens' transcoders are ReLU ones; with a k it is a TopK one whose encoder leaves `b_dec` alone."""
    raw = {"apply_b_dec_to_input": False}
    if dictionary.k == dictionary.n_latents:
        return "transcoder", {**raw, "d_out": dictionary.d}, ()
    return "topk", {**raw, "k": dictionary.k, "rescale_acts_by_decoder_norm": False}, ()


def _matching_pursuit(dictionary: Dictionary) -> Parts:
    if dictionary.orthogonal or not dictionary.nonnegative or (dictionary.tol and dictionary.at_least != 1):
        raise DialectError(
            "SAELens pursues by positive correlations, does not fit again, and takes one step before it looks at the rest; "
            f"this dictionary has {dictionary.settings}. Expected nonnegative, not orthogonal, and tol=0 or at_least=1."
        )
    above = np.nextafter(np.float32(dictionary.tol), np.float32(np.inf)) if dictionary.tol else 0.0
    return "matching_pursuit", {"residual_threshold": float(above), "max_iterations": dictionary.k,
                                "stop_on_duplicate_support": not dictionary.repeats}, ()  # fmt: skip


WRITERS: dict[str, Callable[[Dictionary], Parts]] = {
    "relu": _standard, "tied": _standard, "crosscoder": _standard, "nested_sparsity": _nested_sparsity,
    "topk": _topk, "archetypal": _topk, "batch_norm_topk": _topk, "abs_topk": _abs_topk, "projection": _abs_topk,
    "jumprelu": _jumprelu, "batch_topk": _jumprelu, "nested_dictionary": _jumprelu, "gated": _gated,
    "transcoder": _transcoder, "matching_pursuit": _matching_pursuit,
}  # fmt: skip
