"""dictionary_learning by Marks, Karvonen and Mueller, and the copy of it in sae-for-vlm."""

from __future__ import annotations

import copy
import json
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.answers import Answers
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.dictionary_learning_config import BATCH, CLASSES, FLAG, TOPK, Run, our_site
from vlsae.interop.fields import describe
from vlsae.interop.source import Source
from vlsae.interop.weights import LATENTS, bias_of_raw_input, build, codes_times

RAW = ("AutoEncoderNew", "JumpReluAutoEncoder")  # encoders that do not take b_dec off their input
OWN = {"bias", "decoder_bias", "k", "group_sizes"}  # names that nobody else gives to such tensors
SCALED_BACK = ("b_enc", "b_mag", "b_dec", "threshold")  # of a backup, by the norm factor


@DIALECTS.register("dictionary_learning")
class DictionaryLearning(Dialect):
    """`ae.pt`, a state dict, with `config.json` beside it or, for `checkpoints/ae_{step}.pt`, one folder up.

    Weights read activations as they are: a run that scaled them had its biases and thresholds scaled back on saving.
    """

    name = "dictionary_learning"
    project = "dictionary_learning"

    def sniff(self, source: Source) -> bool:
        if source.weights.suffix != ".pt":
            return False
        run = Run(source)
        if isinstance(run.trainer.get("dict_class"), str):
            return True
        return bool(run.candidates) and (run.named or bool(OWN & set(run.held)))

    def read(self, source: Source, answers: Answers) -> Dictionary:
        run = Run(source)
        kind = run.dict_class or answers.given.get("dict_class")
        if kind is not None and kind not in run.candidates:
            raise DialectError(
                f"{source.weights} is said to be of the class {describe(kind)!r}, but its tensors, {run.listed}, are those of "
                f"{' or '.join(run.candidates) or 'none that we know'}."
            )
        said = answers.settle(**run.facts(kind))
        dictionary = _read(run, kind, said)
        sizes = {"activation_dim": dictionary.d, "dict_size": dictionary.n_latents}
        run.check_sizes(sizes | ({"group_sizes": _groups(dictionary)} if kind == "MatryoshkaBatchTopKSAE" else {}))
        facts = {"dict_class": kind, "trainer": run.trainer, "buffer": run.buffer}
        notes = [*dictionary.metadata.get("notes", []), *run.notes(kind)]
        dictionary.metadata = {
            "model": said.model,
            "site": said.site,
            **{k: v for k, v in facts.items() if v},
            "notes": notes,
        }
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        plain = copy.deepcopy(dictionary).cpu().float()
        try:
            plain.fold_transform()
        except ValueError as error:
            raise DialectError(f"dictionary_learning has no input transforms. {error}") from error
        kind = _class_for(plain)
        tensors = _their_tensors(kind, plain)
        trainer = {"dict_class": kind, "activation_dim": plain.d, "dict_size": plain.n_latents, **_place(dictionary)}
        if kind in TOPK:
            trainer["k"] = plain.k
        buffer = dictionary.metadata.get("buffer")  # of a file that was opened, where its scripts look for the context
        config = {"trainer": trainer} | ({"buffer": buffer} if isinstance(buffer, dict) else {})
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "ae.pt") as partial, open(partial, "wb") as file:
            torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file)
        with replacing(folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _read(run: Run, kind: str, said: SimpleNamespace) -> Dictionary:
    family, names = CLASSES[kind]
    tensors = {ours: run.tensor(theirs) for ours, theirs in names.items()}
    tensors |= {name: tensors[name] * run.scale for name in SCALED_BACK if name in tensors}
    settings = {"k": said.k} if kind in TOPK else {}
    if "encoder.weight" in names.values():
        tensors |= _turned(run.source, tensors)
    if kind in BATCH:
        tensors["threshold"] = torch.full_like(tensors["b_enc"], said.threshold)
    if kind == "MatryoshkaBatchTopKSAE":
        settings["prefixes"] = _prefixes(run)
    dictionary = build(run.source, family, tensors, settings)
    if kind in RAW and not getattr(said, FLAG, False):
        weights = (dictionary.W_enc.data, dictionary.b_enc.data, dictionary.b_dec.data)
        dictionary.b_enc.data = bias_of_raw_input(*weights)
    if kind == "AutoEncoder" and not _has_unit_atoms(dictionary):
        _normalise(run.source, dictionary)
    return dictionary


def _turned(source: Source, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both matrices by our convention; nn.Linear keeps them transposed, which a square one does not show."""
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    if W_enc.ndim != 2 or W_dec.shape != W_enc.T.shape:
        raise DialectError(
            f"{source.weights}: encoder.weight is {list(W_enc.shape)} and decoder.weight {list(W_dec.shape)}; expected "
            "[n_latents, d] and [d, n_latents], as nn.Linear keeps them. Transpose the one that another program turned."
        )
    return {"W_enc": W_enc.T, "W_dec": W_dec.T}


def _prefixes(run: Run) -> list[int]:
    sizes = run.tensor("group_sizes")
    if sizes.is_floating_point() or sizes.ndim != 1 or len(sizes) == 0 or int(sizes.min()) < 1:
        raise DialectError(
            f"{run.source.weights}: group_sizes={describe(sizes.tolist())} must be whole numbers from 1."
        )
    return list(accumulate(sizes.tolist()))


def _has_unit_atoms(dictionary: Dictionary) -> bool:
    """By the tolerance of the library, whose loader leaves such atoms alone."""
    norms = dictionary.W_dec.data.norm(dim=1)
    return torch.allclose(norms, torch.ones_like(norms))


def _normalise(source: Source, dictionary: Dictionary) -> None:
    """Unit atoms and codes of their length, which is what `AutoEncoder` is after the library's loader."""
    W_enc, b_enc, W_dec = (getattr(dictionary, name).data for name in ("W_enc", "b_enc", "W_dec"))
    for begin in range(0, dictionary.n_latents, LATENTS):
        own = slice(begin, begin + LATENTS)
        part = {"W_enc": W_enc[:, own], "b_enc": b_enc[own], "W_dec": W_dec[own]}
        wide = {name: value.double() for name, value in part.items()}
        norms = wide["W_dec"].norm(dim=1)
        if not bool((norms > 0).all()):
            raise DialectError(
                f"{source.weights}: an atom of decoder.weight is zero; the library, which gives unit norm, cannot open it."
            )
        for name, value in codes_times(wide, norms).items():
            part[name].copy_(value)
    dictionary.metadata["notes"] = ["Atoms have unit norm and codes their length, as after the library's loader."]


def _groups(dictionary: Dictionary) -> list[int]:
    return [end - begin for begin, end in pairwise([0, *dictionary.prefixes])]


def _class_for(dictionary: Dictionary) -> str:
    """The class whose loader gives the same codes; AutoEncoder's gives atoms unit norm, AutoEncoderNew's does not."""
    families = {family: kind for kind, (family, _) in CLASSES.items()}
    if dictionary.family not in families:
        raise DialectError(
            f"dictionary_learning has no class for the family {dictionary.family!r}, only for {', '.join(families)}; save it "
            "in our own format."
        )
    if dictionary.family == "relu" and _has_unit_atoms(dictionary):
        return "AutoEncoder"
    return families[dictionary.family]


def _their_tensors(kind: str, dictionary: Dictionary) -> dict[str, Tensor]:
    names = CLASSES[kind][1]
    tensors = {theirs: getattr(dictionary, ours).data for ours, theirs in names.items()}
    for name in {"encoder.weight", "decoder.weight"} & set(tensors):
        tensors[name] = tensors[name].T
    if kind in RAW:
        weights = (dictionary.W_enc.data, dictionary.b_enc.data, -dictionary.b_dec.data)
        tensors[names["b_enc"]] = bias_of_raw_input(*weights)
    if kind in TOPK:
        tensors |= {"k": torch.tensor(dictionary.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    if kind in BATCH:
        threshold = dictionary.threshold.clamp_min(0)
        if bool((threshold != threshold[0]).any()):
            raise DialectError("dictionary_learning has one threshold for all latents; these differ.")
        tensors["threshold"] = threshold[0].clone()
    if kind == "MatryoshkaBatchTopKSAE":
        tensors["group_sizes"] = torch.tensor(_groups(dictionary))
    return tensors


def _place(dictionary: Dictionary) -> dict[str, Any]:
    """Model and site in the library's fields, by our names; empty where they are unknown."""
    place = dictionary.metadata.get("site")
    named = our_site(place)
    layer = Site.parse(named).block if named else None
    return {"lm_name": dictionary.metadata.get("model") or "", "submodule_name": place or "", "layer": layer}
