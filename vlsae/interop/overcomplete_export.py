"""Dictionaries of ours as models of the library `overcomplete`: a state dict, and beside it how to make the model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.dialect import DialectError
from vlsae.interop.overcomplete_layers import span_positively

LIBRARY = "overcomplete"
UNIT = 1e-6  # norms this near to 1 are those of a dictionary layer with normalization "l2"
LOG_OF_ZERO, LOG_OF_ALL = -104.0, 88.7  # float32 exponentials of these are 0 and as large as can be


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `sae.pt` for `load_state_dict`, and `config.json` with the class, its arguments and what a state dict leaves out.

    Raises:
        DialectError: for a dictionary that no class there computes.
    """
    dictionary = _folded(dictionary)
    family = dictionary.family
    if family not in CLASSES:
        raise DialectError(f"overcomplete has no model like {family!r}; it has those of {', '.join(CLASSES)}.")
    if dictionary.b_dec.abs().max() > 0:
        raise DialectError(
            f"This {family!r} dictionary has a decoder bias of norm {dictionary.b_dec.norm():.3g}, and models of overcomplete "
            "have none. Centre the activations that they get: keep b_dec, set dictionary.b_dec to 0, write that, and give "
            "overcomplete x - b_dec."
        )
    name, describe = CLASSES[family]
    state, arguments, more = describe(dictionary)
    config = {
        "library": LIBRARY,
        "class": name,
        "arguments": {"input_shape": dictionary.d, "nb_concepts": dictionary.n_latents, **arguments},
        "model": dictionary.metadata.get("model"),
        "site": dictionary.metadata.get("site"),
        "how_to_open": f"state = torch.load('sae.pt'); model = {name}(**arguments); model.load_state_dict(state); model.eval()",
        **more,
    }
    with replacing(folder / "sae.pt") as partial:
        torch.save({key: value.detach().cpu().float().clone() for key, value in state.items()}, partial)
    with replacing(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _folded(dictionary: Dictionary) -> Dictionary:
    if dictionary.transform.kind == "none":
        return dictionary
    folded = copy.deepcopy(dictionary)
    try:
        folded.fold_transform()
    except ValueError as error:
        raise DialectError(
            f"overcomplete's models have no input transform, and this one's cannot be folded: {error} Give it transformed "
            "activations instead."
        ) from error
    return folded


def _layer(dictionary: Dictionary) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A plain dictionary layer: its tensors, and the argument by which it leaves the atoms as they are."""
    state = {"dictionary._weights": dictionary.W_dec, "dictionary.multiplier": torch.tensor(0.0)}
    unit = (dictionary.W_dec.norm(dim=1) - 1).abs().max() <= UNIT
    return state, {} if unit else {"dictionary_params": {"normalization": "identity"}}


def _linear(dictionary: Dictionary) -> dict[str, Tensor]:
    return {"encoder.final_block.0.weight": dictionary.W_enc.T, "encoder.final_block.0.bias": dictionary.b_enc}


def _relu(dictionary: Dictionary) -> tuple[dict, dict, dict]:
    state, arguments = _layer(dictionary)
    return _linear(dictionary) | state, arguments, {}


def _topk(dictionary: Dictionary) -> tuple[dict, dict, dict]:
    state, arguments, more = _relu(dictionary)
    return state, {"top_k": dictionary.k, **arguments}, more


def _batch_topk(dictionary: Dictionary) -> tuple[dict, dict, dict]:
    """Its `running_threshold`, which is no part of a state dict, keeps codes that are equal to it; ours keeps larger ones."""
    threshold = dictionary.threshold
    if (threshold != threshold[0]).any():
        raise DialectError(
            f"Its thresholds lie between {threshold.min():.4g} and {threshold.max():.4g}; a BatchTopKSAE has one for all "
            "latents. Write it as a jumprelu dictionary."
        )
    state, arguments, _ = _relu(dictionary)
    more = {
        "k": dictionary.k,
        "running_threshold": float(_next(threshold[0])),
        "notes": "Set model.running_threshold = torch.tensor(running_threshold) before use. Its top_k counts over a whole "
        "batch: multiply by the number of tokens in one before you train on.",
    }
    return state, {"top_k": dictionary.k, **arguments}, more


def _next(threshold: Tensor) -> Tensor:
    """The threshold for which `codes >= threshold` are the positive codes above ours."""
    return torch.where(threshold > 0, torch.nextafter(threshold, torch.tensor(torch.inf).to(threshold)), 0.0)


def _jumprelu(dictionary: Dictionary) -> tuple[dict, dict, dict]:
    """Logarithms of thresholds: rounded, so that a threshold moves by a few parts in 10 million."""
    state, arguments, _ = _relu(dictionary)
    logs = _next(dictionary.threshold.detach()).double().log().clamp(LOG_OF_ZERO, LOG_OF_ALL)
    return state | {"thresholds": logs}, {"kernel": "rectangle", "bandwidth": dictionary.bandwidth, **arguments}, {}


def _archetypal(dictionary: Dictionary) -> tuple[dict, dict, dict]:
    """Mixtures, relaxations and candidates, which have to lie where the layer would put them."""
    rows, lengths = dictionary.mixture.sum(1), dictionary.relaxation.norm(dim=1)
    if dictionary.mixture.min() < 0 or (rows - 1).abs().max() > 1e-5 or lengths.max() > dictionary.delta * (1 + 1e-5):
        raise DialectError(
            f"Its mixtures sum to {rows.min():.4g} to {rows.max():.4g} and its relaxations are up to {lengths.max():.4g} long; "
            f"a RATopKSAE brings them to sums of 1 and to delta={dictionary.delta}, which would change it. "
            "Call dictionary.constrain() first."
        )
    layer = {"W": dictionary.mixture, "Relax": dictionary.relaxation, "C": dictionary.candidates}
    state = {f"dictionary.{name}": value for name, value in layer.items()}
    state["dictionary.multiplier"] = dictionary.log_scale.reshape(())
    arguments = {"top_k": dictionary.k, "delta": max(dictionary.delta, 1e-8)}  # it divides delta by norms, 0 / 0 too
    return _linear(dictionary) | state, arguments, {"notes": "Give the class points=state['dictionary.C'] too."}


def _pursuit(dictionary: Dictionary) -> tuple[dict, dict, dict]:
    early = not dictionary.repeats or dictionary.tol  # it may take fewer than k steps
    if not dictionary.nonnegative or dictionary.orthogonal or early:
        raise DialectError(
            f"overcomplete's MpSAE takes the largest signed correlation, k times; this dictionary has {dictionary.settings}: "
            "only nonnegative=True, orthogonal=False, tol=0 and repeats=True is the same."
        )
    state, arguments = _layer(dictionary)
    if arguments:
        raise DialectError(
            "Its atoms are not of unit norm; MpSAE normalises them. Call dictionary.normalise_atoms() first."
        )
    if not span_positively(dictionary.W_dec.detach()):
        raise DialectError(
            "There are inputs on which all its atoms have negative correlations: our pursuit stops there, and MpSAE takes the "
            "least negative one, so their codes would differ."
        )
    return state, {"k": dictionary.k}, {}


CLASSES = {
    "relu": ("SAE", _relu),
    "topk": ("TopKSAE", _topk),
    "batch_topk": ("BatchTopKSAE", _batch_topk),
    "jumprelu": ("JumpSAE", _jumprelu),
    "archetypal": ("RATopKSAE", _archetypal),
    "matching_pursuit": ("MpSAE", _pursuit),
}
