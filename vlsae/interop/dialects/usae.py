"""Universal SAEs (Thasarathan et al. 2025): one model's encoder and dictionary of a code space that several share."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.answers import Answers, Fact, model, number, site
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.modules import SavedModule
from vlsae.interop.overcomplete_layers import atoms, batch_norm
from vlsae.interop.source import Source
from vlsae.interop.weights import build, half_note

KEYS = {"epoch", "model_state_dict", "optimizer_state_dict", "learning_rate"}
LINEAR, NORM = "encoder.final_block.0", "encoder.final_block.1"
TENSORS = {f"{LINEAR}.weight", f"{LINEAR}.bias", f"{NORM}.weight", f"{NORM}.bias", f"{NORM}.running_mean",
           f"{NORM}.running_var", "dictionary._weights"}  # fmt: skip
ALSO = {f"{NORM}.num_batches_tracked", "dictionary.multiplier"}  # the second in releases after the published one
PUBLISHED = "SigLIP -0.030537348 and 2.2315154, DINOv2 0.032904822 and 2.4740644, ViT -0.028632673 and 2.13765"
NONE = "none"


def is_universal(source: Source) -> bool:
    """Whether a file is a checkpoint as the training of Universal SAEs writes it."""
    content = source.content
    if not isinstance(content, dict) or set(content) != KEYS or not isinstance(content["model_state_dict"], dict):
        return False
    return TENSORS <= set(content["model_state_dict"]) <= TENSORS | ALSO


@DIALECTS.register("usae")
class UniversalSAE(Dialect):
    """A training checkpoint of one model, whose encoder ends in a batch norm; k and the inputs' scale are in a yaml file."""

    name = "usae"
    project = "Universal SAE"
    also: ClassVar = ("overcomplete",)  # whose training scripts may keep the same four things

    def sniff(self, source: Source) -> bool:
        return is_universal(source)

    def read(self, source: Source, answers: Answers) -> Dictionary:
        if not is_universal(source):
            raise DialectError(
                f"{source.weights} is no checkpoint of a Universal SAE: a dictionary of {', '.join(sorted(KEYS))} whose "
                "encoder is one linear layer with a batch norm; if overcomplete made it, say dialect='overcomplete'."
            )
        module = SavedModule(source, "model_state_dict.")
        W_dec = atoms(module, "dictionary", "l2", None)
        n, d = W_dec.shape
        told = answers.settle(
            model=model(),
            site=site(width=d),
            k=Fact(None, "active latents a token, top_k of the yaml file", f"1 to {n:,}; published are 32",
                   check=number(1, n, whole=True)),
            mean=Fact(None, "mean of the inputs, model_mean of the yaml file", f"published are {PUBLISHED} (std); or none"),
            std=Fact(None, "deviation of the inputs, model_std of the yaml file", "see mean; none where they are raw"),
        )  # fmt: skip
        shape = module.shapes[f"{LINEAR}.weight"]
        if shape != (n, d):
            raise DialectError(
                f"{source.weights}: the encoder has shape {list(shape)}, the dictionary {[n, d]}; they differ."
            )
        gain, shift, mean, variance = batch_norm(module, NORM, n)
        tensors = {
            "W_enc": module.tensor(f"{LINEAR}.weight").T, "b_enc": module.tensor(f"{LINEAR}.bias"),
            "W_dec": W_dec.float(), "b_dec": torch.zeros(d),
            "gain": gain, "shift": shift, "running_mean": mean, "running_var": variance,
        }  # fmt: skip
        transform = _transform(source, d, told.mean, told.std)
        dictionary = build(source, "batch_norm_topk", tensors, {"k": told.k}, transform)
        said = {name: source.values.get(name) for name in ("epoch", "learning_rate")}
        dictionary.metadata = {
            "model": told.model,
            "site": told.site,
            **{name: value for name, value in said.items() if _is_number(value)},
            "notes": [
                "Its latents mean the same in the dictionaries of the other models that it was trained with.",
                *half_note(source, f"model_state_dict.{LINEAR}.weight", self.project),
            ],
        }
        return dictionary


def _transform(source: Source, d: int, mean: Any, std: Any) -> InputTransform:
    """`(a - mean) / (std + 1e-5)` with one mean and one deviation, or nothing."""
    if (mean, std) == (NONE, NONE):
        return InputTransform(d)
    if not _is_number(mean) or not _is_number(std) or std < 0:
        raise DialectError(
            f"{source.weights}: mean={mean!r} and std={std!r}; expected two numbers, std at least 0, or 'none' for both."
        )
    transform = InputTransform(d, "scalar")
    transform.mean.fill_(mean)
    transform.scale.fill_(1 / (std + 1e-5))
    return transform


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
