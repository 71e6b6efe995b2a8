"""MSAE (Zaigrajew et al. 2025): weights and input scale in the file, all else in the file's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.nested_sparsity import doubling
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.answers import Answers, Fact, model, number, one_of, site, truth
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.source import Source
from vlsae.interop.weights import build

NAME = re.compile(
    r"(?P<n>\d+)_(?P<d>\d+)_(?P<activation>[A-Za-z0-9]+)(?:_(?P<number>\d+))?(?:_(?P<levels>UW|RW))?"
    r"_(?P<tied>True|False)_(?P<normalize>True|False)_(?P<soft_cap>\d+(?:\.\d+)?)(?:_(?P<dataset>.+))?"
)
FAMILIES = {"ReLU": "relu", "TopKReLU": "topk", "BatchTopKReLU": "batch_topk", "BatchTopK": "batch_topk",
            "JumpReLU": "jumprelu"}  # fmt: skip
ANSWERS = ("relu", "topk", "batch_topk", "jumprelu", "nested_sparsity")
TENSORS = {"encoder", "decoder", "pre_bias", "latent_bias", "latents_activation_frequency", "activation.log_threshold",
           "dead_activations.log_threshold"}  # fmt: skip
KNOWN = ("mean_center", "scaling_factor", "target_norm")
LARGEST = torch.finfo(torch.float32).max
CHOICES = "relu, topk (with k=), batch_topk (with k= and threshold=), jumprelu or nested_sparsity (MSAE itself)"
PLAIN_TOPK = (
    "MSAE's class `SAE` decodes all positive codes of it unless topk is given; here it is the k largest, as trained."
)
PLAIN_BATCH = (
    "MSAE's class `SAE` gives all pre-activations of a BatchTopK without ReLU, negative ones too, unless topk is given; here "
    "codes are those above the threshold."
)
VERSION_1 = (
    "checkpoint_version=1.0, with other forward passes beside MSAE's. Where its model_class is Autoencoder or "
    "MatryoshkaAutoencoder, bring it into the older one, which asks for what its model_config says: "
    'torch.save({"model": old["model_state_dict"], **old["preprocessing"]}, "best.pth")'
)


@DIALECTS.register("msae")
class MSAE(Dialect):
    """`torch.save({"model": state dict, "mean_center", "scaling_factor", "target_norm"})`, named
    `LATENTS_INPUTS_ACTIVATION[_K][_UW|_RW]_TIED_NORMALIZE_SOFTCAP_DATASET.pth`."""

    name = "msae"
    project = "MSAE"

    def sniff(self, source: Source) -> bool:
        content = source.content
        scaled = isinstance(content, dict) and {"mean_center", "scaling_factor"} <= set(content)
        return (scaled and source.has("model.encoder", "model.pre_bias", "model.latent_bias")) or _of_version_1(source)

    def read(self, source: Source, answers: Answers) -> Dictionary:
        if _of_version_1(source):
            raise DialectError(f"{source.weights} is of a newer format, {VERSION_1}.")
        self.require(source)
        named = _named(source)
        tensors = _tensors(source, named)
        d, n = tensors["W_enc"].shape
        told = answers.settle(**_facts(source, named, answers, d, n))
        _check_plain(source, told.normalize, told.soft_cap)
        settings = {}
        if told.family in ("topk", "batch_topk"):
            settings["k"] = told.k
        if told.family == "batch_topk":
            tensors["threshold"] = torch.full((n,), told.threshold)
        if told.family == "nested_sparsity":
            settings["ks"] = told.ks or doubling(n, int(named.get("number", 0)) or 64)
        dictionary = build(source, told.family, tensors, settings, _transform(source, d))
        notes = ignored_note(_beside(source), KNOWN) + ([PLAIN_TOPK] if told.family == "topk" else [])
        notes += [PLAIN_BATCH] if named.get("activation") == "BatchTopK" else []
        if told.family == "nested_sparsity" and not told.ks:
            notes.append(
                f"The file does not say its levels; ks={dictionary.ks} is what MSAE's training makes by default."
            )
        dictionary.metadata = {"model": told.model, "site": told.site, **_training(source, named), "notes": notes}
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        activation = _activation(dictionary)
        transform, state = dictionary.transform, dictionary.state_dict()
        if not transform.affine or transform.kind == "standardise":
            raise DialectError(
                f"MSAE's files scale inputs by one number; this dictionary has the transform {transform.kind!r}. Save it in "
                "vlsae's own format."
            )
        whole = transform.kind != "none"
        ours = {"pre_bias": "b_dec", "encoder": "W_enc", "latent_bias": "b_enc", "decoder": "W_dec"}
        weights = {name: state[other].detach().cpu().float().contiguous() for name, other in ours.items()}
        norm = dictionary.metadata.get("target_norm")
        weights["latents_activation_frequency"] = torch.zeros(dictionary.n_latents, dtype=torch.int64)
        content = {
            "model": weights,
            "mean_center": transform.mean.cpu().float() if whole else torch.zeros(dictionary.d),
            "scaling_factor": float(transform.scale[0]) if whole else 1.0,
            "target_norm": norm if isinstance(norm, (int, float)) else dictionary.d**0.5,
        }
        dataset = str(dictionary.metadata.get("dataset", ""))
        dataset = dataset if re.fullmatch(r"[\w~-]{1,100}", dataset) else "vlsae"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{dictionary.n_latents}_{dictionary.d}_{activation}_False_False_0.0_{dataset}.pth"
        with replacing(path) as partial:
            torch.save(content, partial)


def _of_version_1(source: Source) -> bool:
    content = source.content
    return (
        isinstance(content, dict)
        and {"model_config", "preprocessing"} <= set(content)
        and source.has("model_state_dict.encoder", "model_state_dict.pre_bias")
    )


def _beside(source: Source) -> dict[Any, Any]:
    """What the file says beside its weights."""
    return {name: value for name, value in source.content.items() if name != "model"}


def _named(source: Source) -> dict[str, str]:
    """What the file's name says; empty where it is not one of MSAE's."""
    match = NAME.fullmatch(source.weights.stem)
    named = {key: value for key, value in match.groupdict().items() if value is not None} if match else {}
    shape = source.shapes["model.encoder"]
    if named and (int(named["d"]), int(named["n"])) != shape:
        raise DialectError(
            f"{source.weights}: the name says {named['n']} latents of width {named['d']}, and the encoder is {shape}; give the "
            "file its own name again, or one without these parts and answer the questions then."
        )
    if named.get("activation") == "JumpReLU" and named.get("number", named["n"]) != named["n"]:
        raise DialectError(f"{source.weights}: the name says {named['number']} thresholds for {named['n']} latents.")
    return named


def _tensors(source: Source, named: dict[str, str]) -> dict[str, Tensor]:
    other = {name for name in source.shapes if name.startswith("model.")} - {f"model.{name}" for name in TENSORS}
    if other:
        raise DialectError(
            f"{source.weights} also holds {describe(', '.join(sorted(other)), 200)}, whose part in the codes is unknown; "
            f"expected {', '.join(sorted(TENSORS))} alone."
        )
    W_enc = source.tensor("model.encoder")
    tied = not source.has("model.decoder")
    if named and (named["tied"] == "True") != tied:
        raise DialectError(
            f"{source.weights}: the name says tied={named['tied']}, and the file has {'no' if tied else 'a'} decoder."
        )
    if W_enc.ndim != 2:
        raise DialectError(f"{source.weights}: the encoder has shape {tuple(W_enc.shape)}; expected a matrix.")
    tensors = {
        "W_enc": W_enc,
        "b_enc": source.tensor("model.latent_bias"),
        "W_dec": W_enc.T if tied else source.tensor("model.decoder"),
        "b_dec": source.tensor("model.pre_bias"),
    }
    if source.has("model.activation.log_threshold"):
        tensors["threshold"] = source.tensor("model.activation.log_threshold").exp()
    return tensors


def _facts(source: Source, named: dict[str, str], answers: Answers, d: int, n: int) -> dict[str, Fact]:
    family = _family(source, named)
    asked = family or answers.given.get("family")
    k = int(named["number"]) if "number" in named else None
    facts = {"family": Fact(family, "what its activation is, which only its first name says", CHOICES,
                            check=one_of(*ANSWERS))}  # fmt: skip
    if asked in ("topk", "batch_topk"):
        facts["k"] = Fact(k, "how many latents a vector activates", "a whole number", check=number(1, n, whole=True))
    if asked == "batch_topk":
        facts["threshold"] = Fact(
            None, "above which value a code counts, since MSAE chooses over a batch, which one vector has not",
            "a number: 0 is MSAE's own `full` codes where it has a ReLU, or the smallest kept on data of yours",
            check=number(0, LARGEST),
        )  # fmt: skip
    if asked == "nested_sparsity":
        facts["ks"] = Fact(None, "its levels", "rising whole numbers", needed=False, check=_levels(n))
    normalize = named["normalize"] == "True" if named else None
    soft_cap = float(named["soft_cap"]) if named else None
    return facts | {
        "normalize": Fact(
            normalize, "whether vectors are standardised one by one", "False, or True, which is refused", check=truth
        ),
        "soft_cap": Fact(
            soft_cap,
            "the bound that tanh keeps codes below",
            "0 where there is none; others are refused",
            check=number(0),
        ),
        "model": model(None, named.get("dataset")),
        "site": site(None, named.get("dataset"), d),
        **other_fields(_beside(source), KNOWN, "MSAE"),
    }


def _levels(n: int) -> Callable[[Any], list[int]]:
    def check(value: Any) -> list[int]:
        if not isinstance(value, list | tuple):
            raise ValueError("expected a list of whole numbers")
        return [number(1, n, whole=True)(level) for level in value]

    return check


def _family(source: Source, named: dict[str, str]) -> str | None:
    jump = source.has("model.activation.log_threshold")
    if not named:
        return "jumprelu" if jump else None
    activation = named["activation"]
    family = FAMILIES.get(activation)
    if family is None or jump != (family == "jumprelu") or ("levels" in named and family != "topk"):
        raise DialectError(
            f"{source.weights}: the name says the activation {activation!r} and the file has {'' if jump else 'no '}learned "
            f"thresholds; read are {', '.join(FAMILIES)} (thresholds for JumpReLU alone), the others keep negative codes or "
            "magnitudes."
        )
    return "nested_sparsity" if "levels" in named else family


def _check_plain(source: Source, normalize: bool, soft_cap: float) -> None:
    if normalize or soft_cap:
        raise DialectError(
            f"{source.weights}: normalize={normalize} and soft_cap={soft_cap}; only normalize=False with soft_cap=0 can be "
            "read, since no family standardises vectors behind a scaling or bounds its codes by tanh."
        )


def _transform(source: Source, d: int) -> InputTransform:
    """`(x - mean_center) scaling_factor` with the stored numbers, which do not give the norm that they are meant to."""
    scale = _number(source, "scaling_factor")
    stored = source.has("mean_center")
    mean = source.tensor("mean_center") if stored else torch.tensor(_number(source, "mean_center"))
    if mean.shape not in ((), (1,), (d,)) or not scale > 0:
        raise DialectError(
            f"{source.weights}: mean_center has shape {tuple(mean.shape)} and scaling_factor is {scale}; expected ({d},), or "
            "one number, and a positive number."
        )
    transform = InputTransform(d, "centre_sqrt_d")
    transform.mean.copy_(mean.expand(d))
    transform.scale.fill_(scale)
    return transform


def _number(source: Source, name: str) -> float:
    value = source.number(name)
    if not abs(value) < LARGEST:  # a pickle's whole numbers have no bound
        raise DialectError(f"{source.weights}: {name} is too large for a number of single precision.")
    return float(value)


def _training(source: Source, named: dict[str, str]) -> dict[str, Any]:
    """What the name and the file say of training."""
    norm = source.values.get("target_norm")
    facts = {
        "dataset": named.get("dataset"),
        "level_weights": named.get("levels"),
        "sparse_weight": float(f"0.{named['number']}")
        if named.get("activation") == "ReLU" and "number" in named
        else None,
        "target_norm": norm if isinstance(norm, (int, float)) else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _activation(dictionary: Dictionary) -> str:
    """The part of the name from which MSAE's loader makes the activation."""
    family = dictionary.family
    if family == "relu":
        weight = dictionary.metadata.get("sparse_weight")
        decimals = f"{weight:.15f}".rstrip("0").partition(".")[2] if isinstance(weight, float) else ""
        return f"ReLU_{decimals or 0}"
    if family == "topk":
        return f"TopKReLU_{dictionary.k}"
    if family == "nested_sparsity" and not dictionary.cut:
        levels = "RW" if dictionary.metadata.get("level_weights") == "RW" else "UW"
        return f"TopKReLU_{dictionary.ks[0]}_{levels}"
    why = {
        "batch_topk": "chooses over a batch and stores no threshold",
        "jumprelu": "has a JumpReLU that its own loader cannot open",
        "nested_sparsity": "keeps all positive codes of an MSAE, and this one is cut to its largest",
    }
    raise DialectError(
        f"A dictionary of the family {family!r} cannot be written for MSAE, which {why.get(family, 'has no such activation')}. "
        "Save it in vlsae's own format, or convert it for another project."
    )
