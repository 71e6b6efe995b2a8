"""VL-SAE (Shen et al. 2025): plain state dicts of the distance encoder with two decoders, and of its two ablations."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.answers import Answers, Fact, model, number, one_of, site
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.source import Source
from vlsae.interop.weights import bias_of_raw_input, build

PAIR = ("weight", "bias")
SHARED = {"encoder", *(f"{side}_decoder.{part}" for side in ("vision", "text") for part in PAIR)}  # VL_SAE
ONE = {f"{layer}.{part}" for layer in ("encoder", "decoder.0") for part in PAIR}  # SAE_V
TWO = {f"{layer}.{part}" for layer in ("v_encoder", "t_encoder", "vision_decoder.0", "text_decoder.0")
       for part in PAIR}  # fmt: skip  # SAE_D
HALVES = {"image": ("v_encoder", "vision_decoder.0"), "text": ("t_encoder", "text_decoder.0")}
NAMED = re.compile(r"_(\d{1,9})_(\d{1,9})(?=_|$)")  # topk and hidden_ratio, by the habit of the released files
NAMED_K = "Its name says that topk was {} in training; it is read with k={}, as was said."
TIES = "The released code drops all latents that tie with the first one left out; here k are kept, by position."
AUXILIARY = (
    "By its name it reads what VL-SAE's auxiliary autoencoder makes of a language model's states, not the states."
)


@DIALECTS.register("vl_sae")
class VLSAEFile(Dialect):
    """A state dict and nothing else: `topk`, the model and the site are known to the scripts alone."""

    name = "vl_sae"
    project = "VL-SAE"

    def sniff(self, source: Source) -> bool:
        return any(source.only(*names) for names in (SHARED, ONE, TWO))

    def read(self, source: Source, answers: Answers) -> Dictionary:
        self.require(source)
        halves = {"modality": _modality()} if source.only(*TWO) else {}
        encoder = "encoder" if source.only(*SHARED) else "v_encoder.weight" if halves else "encoder.weight"
        n, d = _size(source, encoder)
        named = _named(source, n, d)
        hint = f" (released files have it in their names: here perhaps {named})" if named else ""
        facts = {
            "k": Fact(None, f"how many latents a vector activates{hint}", "a whole number, topk of its training",
                      check=number(1, max(1, n - 1), whole=True)),
            **halves,
            "model": model(None, source.weights.name),
            "site": site(None, None, d),
        }  # fmt: skip
        told = answers.settle(**facts)
        if source.only(*SHARED):
            dictionary = build(source, "vl_sae", _shared(source), {"k": told.k})
        else:
            layers = HALVES[told.modality] if halves else ("encoder", "decoder.0")
            dictionary = build(source, "topk", _linear(source, *layers), {"k": told.k})
        notes = [TIES] + ([AUXILIARY] if source.weights.name.lower().startswith(("llava", "qwen")) else [])
        notes += [NAMED_K.format(named, told.k)] if named not in (0, told.k) else []
        dictionary.metadata = {"model": told.model, "site": told.site, "notes": notes}
        if halves:
            dictionary.metadata["modality"] = told.modality
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        if dictionary.family != "vl_sae":
            raise DialectError(
                f"VL-SAE's class has a distance encoder and a decoder for each modality; this dictionary is of the family "
                f"{dictionary.family!r}. Save it in vlsae's own format, or convert it for another project."
            )
        if dictionary.transform.kind != "none":
            raise DialectError(
                f"VL-SAE's class reads embeddings as they are, and this dictionary reads them behind the transform "
                f"{dictionary.transform.kind!r}, which a distance encoder cannot take into its weights."
            )
        if dictionary.k == dictionary.n_latents:
            raise DialectError(
                f"VL-SAE's class cannot keep all latents (k={dictionary.k} of {dictionary.n_latents}): it looks for the "
                "largest that is left out. Choose a smaller k."
            )
        folder.mkdir(parents=True, exist_ok=True)
        name = f"VL_SAE_{dictionary.k}_{dictionary.n_latents / dictionary.d:g}_best.pth"
        with replacing(folder / name) as partial:
            torch.save(_state(dictionary), partial)


def _modality() -> Fact:
    return Fact(None, "which of its two encoders and decoders, which share no weights", "image or text",
                check=one_of(*HALVES))  # fmt: skip


def _named(source: Source, n: int, d: int) -> int:
    """`topk` by the file's name, where the ratio beside it is that of the weights; 0 without."""
    found = NAMED.findall(source.weights.stem)
    return int(found[-1][0]) if found and int(found[-1][1]) * d == n else 0


def _size(source: Source, name: str) -> tuple[int, int]:
    shape = source.shapes[name]
    if len(shape) != 2:
        raise DialectError(f"{source.weights}: {name} has shape {shape}; expected a matrix.")
    return shape


def _transposed(source: Source, name: str) -> Tensor:
    _size(source, name)
    return source.tensor(name).T


def _shared(source: Source) -> dict[str, Tensor]:
    return {
        "W_enc": _transposed(source, "encoder"),
        "W_dec": _transposed(source, "vision_decoder.weight"),
        "b_dec": source.tensor("vision_decoder.bias"),
        "W_dec_text": _transposed(source, "text_decoder.weight"),
        "b_dec_text": source.tensor("text_decoder.bias"),
    }


def _linear(source: Source, encoder: str, decoder: str) -> dict[str, Tensor]:
    """A linear encoder on raw inputs: ours takes `b_dec` off first."""
    weight, b_enc, b_dec = (source.shapes[name] for name in (f"{encoder}.weight", f"{encoder}.bias", f"{decoder}.bias"))
    if not len(b_enc) == len(b_dec) == 1 or weight != b_enc + b_dec:
        raise DialectError(
            f"{source.weights}: {encoder}.weight has shape {weight}; with biases of shape {b_enc} and {b_dec} it should be "
            f"{b_enc + b_dec}."
        )
    W_enc, b_dec = source.tensor(f"{encoder}.weight").T, source.tensor(f"{decoder}.bias")
    return {
        "W_enc": W_enc,
        "b_enc": bias_of_raw_input(W_enc, source.tensor(f"{encoder}.bias"), b_dec),
        "W_dec": _transposed(source, f"{decoder}.weight"),
        "b_dec": b_dec,
    }


def _state(dictionary: Dictionary) -> dict[str, Tensor]:
    state = {
        "encoder": dictionary.W_enc.T,
        "vision_decoder.weight": dictionary.W_dec.T,
        "vision_decoder.bias": dictionary.b_dec,
        "text_decoder.weight": dictionary.W_dec_text.T,
        "text_decoder.bias": dictionary.b_dec_text,
    }
    return {name: value.detach().cpu().float().contiguous() for name, value in state.items()}
