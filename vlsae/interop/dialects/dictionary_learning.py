"""dictionary_learning by Marks, Karvonen and Mueller, and the copy of it in sae-for-vlm."""

from __future__ import annotations

import copy
import json
import re
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.answers import Answers, Fact, model, site
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.source import Source
from vlsae.interop.weights import bias_of_raw_input, build, codes_times

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
CLASSES = {  # our family, and their names of our tensors
    "AutoEncoder": ("relu", LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": ("relu", LINEAR | {"b_dec": "decoder.bias"}),
    "GatedAutoEncoder": ("gated", LINEAR | {"b_dec": "decoder_bias", "b_enc": "gate_bias", "b_mag": "mag_bias",
                                            "r_mag": "r_mag"}),
    "JumpReluAutoEncoder": ("jumprelu", PLAIN | {"threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": ("batch_topk", LINEAR | {"b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": ("nested_dictionary", PLAIN),
}  # fmt: skip
RAW = ("AutoEncoderNew", "JumpReluAutoEncoder")  # encoders that do not take b_dec off their input
BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
TOPK = ("AutoEncoderTopK", *BATCH)  # may store `k` and `threshold`; older versions did not
OWN = {"bias", "decoder_bias", "k", "group_sizes"}  # names that nobody else gives to such tensors
SPELLINGS = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}  # sae-for-vlm's


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
        if isinstance(_trainer(source).get("dict_class"), str):
            return True
        return bool(_candidates(source)) and (_is_named_ae(source) or bool(OWN & set(source.values)))

    def read(self, source: Source, answers: Answers) -> Dictionary:
        trainer, candidates = _trainer(source), _candidates(source)
        found = _dict_class(source, trainer, candidates)
        kind = found or answers.given.get("dict_class")
        if kind is not None and kind not in candidates:
            raise DialectError(
                f"{source.weights} is said to be of the class {str(kind)[:60]!r}, but its tensors, "
                f"{', '.join(list(source.values)[:12])}, are those of {' or '.join(candidates) or 'none that we know'}."
            )
        said = answers.settle(**_facts(source, trainer, found, candidates, kind))
        dictionary = _read(source, kind, said)
        _check_sizes(source, trainer, dictionary)
        facts = {"dict_class": kind, "trainer": trainer, "buffer": _config(source).get("buffer")}
        dictionary.metadata |= {"model": said.model, "site": said.site, **{k: v for k, v in facts.items() if v}}
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
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "ae.pt") as partial, open(partial, "wb") as file:
            torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file)
        with replacing(folder / "config.json") as partial:
            partial.write_text(json.dumps({"trainer": trainer}, indent=4) + "\n", encoding="utf-8")


def _is_named_ae(source: Source) -> bool:
    return re.fullmatch(r"ae(_\d+)?\.pt", source.weights.name) is not None


def _config(source: Source) -> dict[str, Any]:
    if source.folder.name == "checkpoints" and _is_named_ae(source):
        return source.json("config.json") or source.json("../config.json")
    return source.json("config.json")


def _trainer(source: Source) -> dict[str, Any]:
    trainer = _config(source).get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _candidates(source: Source) -> list[str]:
    """The classes whose tensors these are."""
    held, fitting = set(source.values), []
    for kind, (_, names) in CLASSES.items():
        needed = set(names.values()) | ({"group_sizes"} if kind == "MatryoshkaBatchTopKSAE" else set())
        if needed <= held <= needed | ({"k", "threshold"} if kind in TOPK else set()):
            fitting.append(kind)
    return fitting


def _dict_class(source: Source, trainer: dict[str, Any], candidates: list[str]) -> str | None:
    """The class that the configuration names, else the only one whose tensors these are."""
    named = trainer.get("dict_class")
    if named is None and candidates:
        return candidates[0] if len(candidates) == 1 else None
    named = SPELLINGS.get(named, named) if isinstance(named, str) else named
    if named not in list(CLASSES):
        raise DialectError(
            f"{source.weights} is of the class {str(named)[:60]!r}, with {', '.join(list(source.values)[:12]) or 'no'} "
            f"tensors; expected one of {', '.join(CLASSES)}."
        )
    return named


def _facts(
    source: Source, trainer: dict[str, Any], found: str | None, candidates: list[str], kind: str | None
) -> dict[str, Fact]:
    folder = source.folder.resolve()
    folder = folder.parent if folder.name == "checkpoints" else folder
    says = f"folder {folder.name}"  # sae-for-vlm leaves both fields empty and names the folder after them
    lm, module = trainer.get("lm_name"), trainer.get("submodule_name")
    facts = {
        "model": model(_our_model(lm), says=lm or says),
        "site": site(_our_site(module), says=f"{module}, layer {trainer.get('layer')}" if module else says),
        "dict_class": Fact(found, "its class", f"{' or '.join(candidates)} (the latter also needs its threshold=...)"),
    }
    if kind in (None, *TOPK):
        facts["k"] = Fact(_k(source, trainer), "active latents a token", "a whole number")
    if kind in (None, *BATCH):
        facts["threshold"] = Fact(_threshold(source), "the threshold on codes, which the file does not have",
                                  "a number of at least 0", needed=kind is not None)  # fmt: skip
    if kind == "JumpReluAutoEncoder":
        flag = trainer.get("apply_b_dec_to_input", False)  # no file says it, and its own loader leaves it off
        facts["apply_b_dec_to_input"] = Fact(flag, "whether b_dec is taken off the input", "", user_wins=True)
    return facts


def _our_model(name: Any) -> str | None:
    """A name that we wrote there; their own are names of language models."""
    ours = isinstance(name, str) and (name in ("tiny", "tiny16") or name.startswith(("open_clip:", "hf:")))
    return name if ours else None


def _our_site(name: Any) -> str | None:
    try:
        return str(Site.parse(name)) if isinstance(name, str) else None
    except ValueError:
        return None


def _k(source: Source, trainer: dict[str, Any]) -> int | None:
    said = [source.number("k")] if "k" in source.values else []
    said += [trainer["k"]] if trainer.get("k") is not None else []
    if any(isinstance(k, bool) or not isinstance(k, (int, float)) or k != said[0] or k % 1 for k in said):
        raise DialectError(f"{source.weights} and its config.json say k={said}; expected one whole number.")
    return int(said[0]) if said else None


def _threshold(source: Source) -> float | None:
    """The stored threshold, where training ever set it; until then it is -1."""
    value = source.number("threshold") if "threshold" in source.values else -1
    return float(value) if value >= 0 else None


def _read(source: Source, kind: str, said: SimpleNamespace) -> Dictionary:
    family, names = CLASSES[kind]
    tensors = {ours: source.tensor(theirs) for ours, theirs in names.items()}
    settings = {"k": said.k} if kind in TOPK else {}
    if "encoder.weight" in names.values():
        tensors |= _turned(source, tensors)
    if kind in BATCH:
        tensors["threshold"] = torch.full_like(tensors["b_enc"], _given_threshold(source, said.threshold))
    if kind == "MatryoshkaBatchTopKSAE":
        settings["prefixes"] = _prefixes(source)
    dictionary = build(source, family, tensors, settings)
    if kind in RAW and not getattr(said, "apply_b_dec_to_input", False):
        weights = (dictionary.W_enc.data, dictionary.b_enc.data, dictionary.b_dec.data)
        dictionary.b_enc.data = bias_of_raw_input(*weights)
    if kind == "AutoEncoder" and not _has_unit_atoms(dictionary):
        _normalise(dictionary)
    if kind == "AutoEncoderTopK" and _threshold(source) is not None:
        dictionary.metadata["notes"] = [f"Codes are the k largest; the threshold {_threshold(source)} plays no part."]
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


def _given_threshold(source: Source, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e38:  # float32 has no more
        raise DialectError(f"threshold={value!r} of {source.weights} must be a number of at least 0.")
    return float(value)


def _prefixes(source: Source) -> list[int]:
    sizes = source.tensor("group_sizes")
    if sizes.is_floating_point() or sizes.ndim != 1 or len(sizes) == 0 or int(sizes.min()) < 1:
        raise DialectError(f"{source.weights}: group_sizes={str(sizes.tolist())[:80]} must be whole numbers from 1.")
    return list(accumulate(sizes.tolist()))


def _has_unit_atoms(dictionary: Dictionary) -> bool:
    """By the tolerance of the library, whose loader leaves such atoms alone."""
    norms = dictionary.W_dec.data.norm(dim=1)
    return torch.allclose(norms, torch.ones_like(norms))


def _normalise(dictionary: Dictionary) -> None:
    """Unit atoms and codes of their length, which is what `AutoEncoder` is after the library's loader."""
    weights = {name: getattr(dictionary, name).data.double() for name in ("W_enc", "b_enc", "W_dec")}
    norms = weights["W_dec"].norm(dim=1)
    if not bool((norms > 0).all()):
        raise DialectError("An atom is zero: the library, which gives atoms unit norm, cannot open it either.")
    for name, value in codes_times(weights, norms).items():
        getattr(dictionary, name).data.copy_(value)
    dictionary.metadata["notes"] = ["Atoms have unit norm and codes their length, as after the library's loader."]


def _check_sizes(source: Source, trainer: dict[str, Any], dictionary: Dictionary) -> None:
    sizes = {"activation_dim": dictionary.d, "dict_size": dictionary.n_latents}
    if dictionary.family == "nested_dictionary":
        sizes["group_sizes"] = _groups(dictionary)
    for name, size in sizes.items():
        if trainer.get(name) not in (None, size):
            raise DialectError(f"{source.weights} has {name}={size}, its config.json says {str(trainer[name])[:80]}.")


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
    named = _our_site(place)
    layer = Site.parse(named).block if named else None
    return {"lm_name": dictionary.metadata.get("model") or "", "submodule_name": place or "", "layer": layer}
