"""`params.npz` of Gemma Scope: JumpReLU dictionaries whose encoder reads the activations as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.interop import answers as ask
from vlsae.interop.answers import Answers
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import describe
from vlsae.interop.source import Source
from vlsae.interop.weights import bias_of_raw_input, build, raw_inputs

THRESHOLDS = ("jumprelu", "batch_topk", "nested_dictionary", "gated")
RECTIFIED = ("relu", "tied", "crosscoder", "nested_sparsity", "transcoder")  # thresholds of 0
NAMES = {name.lower(): name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}


@DIALECTS.register("gemma_scope")
class GemmaScope(Dialect):
    """`z = ReLU(x W_enc + b_enc) 1[x W_enc + b_enc > threshold]`, `xhat = z W_dec + b_dec`, five arrays and nothing else.

    Transcoders of the same project have the same file: what they give is another activation.
    """

    name = "gemma_scope"
    project = "Gemma Scope"

    def sniff(self, source: Source) -> bool:
        names = sorted(source.shapes)
        return source.weights.suffix == ".npz" and sorted(map(str.lower, names)) == sorted(NAMES)

    def read(self, source: Source, answers: Answers) -> Dictionary:
        if not self.sniff(source):
            raise DialectError(
                f"{source.weights} holds {describe(', '.join(source.shapes) or 'no array', 200)}; expected an .npz of "
                f"{', '.join(NAMES.values())} and nothing else, which is all that Gemma Scope computes with."
            )
        tensors = {NAMES[name.lower()]: source.tensor(name) for name in source.shapes}
        if tensors["W_dec"].ndim != 2 or tensors["W_enc"].shape != tensors["W_dec"].T.shape:
            raise DialectError(
                f"{source.weights}: W_enc has shape {list(tensors['W_enc'].shape)} and W_dec {list(tensors['W_dec'].shape)}; "
                "expected [d, n] and [n, d]."
            )
        n, d = tensors["W_dec"].shape
        if tensors["b_dec"].shape != (d,) or tensors["b_enc"].shape != (n,):
            raise DialectError(f"{source.weights}: the biases do not have {n} and {d} values, as the matrices have.")
        place = [part for part in source.weights.resolve().parts if part.startswith("layer_")]  # the published folders
        said = answers.settle(model=ask.model(), site=ask.site(says="".join(place[-1:]), width=d))
        tensors["b_enc"] = bias_of_raw_input(tensors["W_enc"], tensors["b_enc"], tensors["b_dec"])
        dictionary = build(source, "jumprelu", tensors)
        dictionary.metadata = {"model": said.model, "site": said.site}
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        arrays = _arrays(dictionary)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "params.npz") as partial, open(partial, "wb") as file:
            np.savez(file, **{name: value.float().numpy() for name, value in arrays.items()})


@torch.no_grad()
def _arrays(dictionary: Dictionary) -> dict[str, Tensor]:
    """Weights that read raw activations, with one threshold a latent."""
    family, transform = dictionary.family, dictionary.transform
    if family == "gated":
        dictionary = dictionary.to_jumprelu()
    cuts = getattr(dictionary, "cut", 0) or (family == "transcoder" and dictionary.k < dictionary.n_latents)
    if cuts or family not in THRESHOLDS + RECTIFIED or not transform.affine:
        raise DialectError(
            f"{family!r} with {dictionary.settings} behind {transform.kind!r} cannot be written as Gemma Scope, whose codes "
            "are raw activations times W_enc, cut at a threshold a latent; convert it to another format."
        )
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    subtracts = family != "transcoder"
    made = {name: getattr(dictionary, name).detach().cpu() for name in names}
    made = raw_inputs(made, transform, subtracts)
    if subtracts:
        made["b_enc"] = made["b_enc"] - made["b_dec"] @ made["W_enc"]
    threshold = getattr(dictionary, "threshold", torch.zeros(dictionary.n_latents))
    return {**made, "threshold": threshold.detach().cpu()}
