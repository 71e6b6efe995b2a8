"""saev (OSU-NLP-Group): `sae.pt`, one line of JSON before what `torch.save` wrote."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop import answers as ask
from vlsae.interop.answers import Answers, Fact
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.source import Source
from vlsae.interop.weights import bias_of_raw_input, build, without_transform

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD = "activation.threshold"
SCHEMAS = (0, 1, 2, 3, 4, 5)  # 0: the first files, which have no such field
NEWEST = SCHEMAS[-1]
FAMILIES = {
    "Relu": ("relu",),
    "TopK": ("unrectified_topk", "topk"),
    "BatchTopK": ("batch_topk", "unrectified_topk", "topk"),
}
SIGNED = (
    "saev's TopK has no ReLU: where fewer than k pre-activations are positive, negative ones are among the codes "
    '(family="topk" drops them).'
)
DROPPED = "Negative values among the k largest are dropped, as was asked; saev keeps them."
OWN_LOADER = "Later versions of saev read this file without taking b_dec off the input, which its training did."


@dataclass(frozen=True)
class Header:
    """What the first line says.

    Attributes:
        schema: 0 to 5; activation: "Relu", "TopK" or "BatchTopK"; params: its settings; cfg: of the whole model.
    """

    schema: int
    activation: str
    params: dict[str, Any] = field(default_factory=dict)
    cfg: dict[str, Any] = field(default_factory=dict)


@DIALECTS.register("saev")
class Saev(Dialect):
    """All generations: without `schema` (PyPI 0.1.0), and schemas 1 to 5.

    `b_dec` is taken off the input by the first generation, by no file of schema 2 or later, and under schema 1 by those
    written before commit e7ca004 of 2025-07-31. Data were centred and scaled before training by the first two, with numbers
    that no file holds.
    """

    name = "saev"
    project = "saev"

    def sniff(self, source: Source) -> bool:
        if not source.has(*NAMES) or source.weights.suffix == ".safetensors":
            return False
        header = source.header
        return "d_vit" in header or ("schema" in header and isinstance(header.get("cfg"), dict))

    def read(self, source: Source, answers: Answers) -> Dictionary:
        header = _header(source)
        d, n = _size(source, header)
        told = answers.settle(**_facts(source, header, d), **_sparsity(source, header, answers))
        if told.family not in FAMILIES[header.activation]:
            choices = ", ".join(FAMILIES[header.activation])
            raise DialectError(
                f"{source.weights} holds {header.activation}; family={told.family!r} is none of {choices}."
            )
        tensors = {name: source.tensor(name) for name in NAMES}
        if not _yes(source, told.subtract_b_dec):
            tensors["b_enc"] = bias_of_raw_input(tensors["W_enc"], tensors["b_enc"], tensors["b_dec"])
        if told.family == "batch_topk":
            tensors["threshold"] = torch.full((n,), max(0.0, _number(source, "threshold", told.threshold)))
        settings = {} if told.family == "relu" else {"k": min(_count(source, told.k), n)}  # saev then takes all, too
        dictionary = build(source, told.family, tensors, settings, _transform(source, told, d))
        notes = {"topk": [DROPPED], "unrectified_topk": [SIGNED]}.get(told.family, [])
        notes += [OWN_LOADER] if header.schema == 0 else []
        dictionary.metadata = {"model": told.model, "site": told.site, "saev": source.header, "notes": notes}
        if source.config:
            dictionary.metadata["saev_run"] = source.config
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        """Schema 5; `b_dec`, which saev does not take off the input, is folded into `b_enc`."""
        activation = _activation(dictionary)
        plain = without_transform(dictionary, self.project)
        W_enc, b_enc, W_dec, b_dec = (getattr(plain, name).detach().cpu().float() for name in NAMES)
        state = {"W_dec": W_dec, "b_dec": b_dec, "W_enc": W_enc, "b_enc": bias_of_raw_input(W_enc, b_enc, -b_dec)}
        if activation["cls"] == "BatchTopK":
            state[THRESHOLD] = plain.threshold[0].detach().cpu().float()
        cfg = {"d_model": plain.d, "d_sae": plain.n_latents, "activation": activation}
        header = {"schema": NEWEST, "cfg": cfg, "commit": "unknown", "lib": "vlsae"}
        data = io.BytesIO()
        torch.save({name: value.contiguous().clone() for name, value in state.items()}, data)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "sae.pt") as partial:
            partial.write_bytes(json.dumps(header).encode() + b"\n" + data.getvalue())


def _header(source: Source) -> Header:
    header = source.header
    schema = header.get("schema", 0)
    if type(schema) is not int or schema not in SCHEMAS:
        raise DialectError(
            f"{source.weights} has schema {str(schema)[:40]}; known are none and 1 to {NEWEST}. Is there a newer vlsae?"
        )
    if schema == 0:
        return Header(0, "Relu", cfg=header)
    cfg = header.get("cfg")
    cfg = cfg if isinstance(cfg, dict) else {}
    found, params = header.get("cls"), cfg
    if schema > 1 or "activation" in cfg:  # schema 1 has two layouts: the activation as the class of cfg, or inside it
        inner = cfg.get("activation")
        inner = inner if isinstance(inner, dict) else {}
        found, params = inner.get("cls"), inner.get("params")
    if not isinstance(found, str) or found not in FAMILIES:
        reason = "; it chooses among a whole batch by size, which no family computes" if found == "AbsBatchTopK" else ""
        raise DialectError(
            f"{source.weights} names the activation {str(found)[:60]!r}; expected Relu, TopK or BatchTopK{reason}."
        )
    return Header(schema, found, params if isinstance(params, dict) else {}, cfg)


def _size(source: Source, header: Header) -> tuple[int, int]:
    """Width and number of latents, by the tensors; the header must agree."""
    extra = sorted(set(source.shapes) - {*NAMES, THRESHOLD})
    if extra:
        raise DialectError(
            f"{source.weights} also holds {', '.join(extra)[:200]}, whose part in the codes is unknown; expected "
            f"{', '.join(NAMES)} and perhaps {THRESHOLD}."
        )
    shape = source.shapes["W_enc"]
    if len(shape) != 2:
        raise DialectError(f"{source.weights}: W_enc has shape {shape}; expected [d, n_latents].")
    d, n = shape
    fits = {"b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    for name in (name for name in fits if source.shapes[name] != fits[name]):
        raise DialectError(
            f"{source.weights}: {name} has shape {source.shapes[name]}; expected {fits[name]} beside W_enc {shape}."
        )
    cfg = header.cfg
    said = {"d_vit": d, "d_model": d, "d_sae": n, "exp_factor": n / d if d else 0}
    wrong = [name for name, value in said.items() if name in cfg and cfg[name] != value]
    if wrong:
        raise DialectError(
            f"{source.weights}: its header says {', '.join(f'{name}={str(cfg[name])[:40]}' for name in wrong)}, its W_enc is "
            f"[{d}, {n}]; the file is put together from two."
        )
    return d, n


def _facts(source: Source, header: Header, d: int) -> dict[str, Fact]:
    """What is needed beside the activation; the generation says some of it, and the run's configuration beside the file."""
    run = source.config.get("train_data", source.config.get("data"))
    run = run if isinstance(run, dict) else {}
    scaled = header.schema < 2  # later loaders hand out activations as they are, unless told otherwise
    layer = run.get("layer")
    commit = str(source.header.get("commit", "unknown"))[:40]
    return {
        "model": ask.model(),
        "site": ask.site(f"vision.{layer}.resid_post" if type(layer) is int else None, says=layer, width=d),
        "subtract_b_dec": Fact(
            None if header.schema == 1 else header.schema == 0,
            f"whether the encoder takes b_dec off its input (the file was written by commit {commit})",
            "True for commits before e7ca004 of 2025-07-31, False from there on",
        ),
        "mean": Fact(
            None if run.get("scale_mean", scaled) else 0,
            "the mean that saev took off activations before training (scale_mean, on by default; no file holds it)",
            f"{d} numbers, the mean of 524,288 random activations of the training data; 0 if it was off",
        ),
        "scale": Fact(
            None if run.get("scale_norm", scaled) else 1,
            "what saev then divided activations by (scale_norm, on by default; no file holds it)",
            "a number, their mean norm without the mean over sqrt(d); 1 if it was off",
        ),
    }


def _sparsity(source: Source, header: Header, answers: Answers) -> dict[str, Fact]:
    """What is needed of the activation; saev had BatchTopK before it had a threshold."""
    if header.activation == "Relu":
        return {"family": Fact("relu", "the family", "relu")}
    k = Fact(header.params.get("top_k"), "how many latents are active", "a whole number")
    if header.activation == "TopK":
        return {"k": k, "family": Fact("unrectified_topk", "the family", "unrectified_topk, topk", user_wins=True)}
    held = THRESHOLD in source.shapes
    return {
        "k": k,
        "family": Fact(
            "batch_topk" if held else None,
            "what BatchTopK does in use (without a threshold saev chose top_k of the whole batch, or of each vector)",
            "batch_topk, with a threshold of yours; unrectified_topk or topk, of each vector",
        ),
        "threshold": Fact(
            source.number(THRESHOLD) if held else None,
            "above which pre-activation a latent fires",
            "a number; none with another family",
            needed=answers.given.get("family", "batch_topk") == "batch_topk",
        ),
    }


def _transform(source: Source, told: Any, d: int) -> InputTransform:
    """`(x - mean) / scale`."""
    try:
        mean = torch.as_tensor(told.mean, dtype=torch.float32).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError):
        mean = torch.empty(0)
    if mean.shape not in ((1,), (d,)) or not torch.isfinite(mean).all() or (len(mean) != d and mean[0] != 0):
        raise DialectError(
            f"{source.weights}: mean={str(told.mean)[:60]} does not fit; give {d} numbers, or 0 for none."
        )
    scale = _number(source, "scale", told.scale)
    if scale <= 0:
        raise DialectError(f"{source.weights}: scale={scale} does not fit; give a positive number, or 1 for none.")
    kind = {(False, False): "none", (True, False): "centre", (False, True): "sqrt_d", (True, True): "centre_sqrt_d"}
    transform = InputTransform(d, kind[bool(mean.any()), scale != 1])
    if transform.kind != "none":
        transform.mean.copy_(mean.expand(d))
        transform.scale.fill_(1 / scale)
    return transform


def _number(source: Source, name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DialectError(f"{source.weights}: {name}={str(value)[:60]} is no number; give one.")
    return number


def _count(source: Source, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise DialectError(f"{source.weights}: top_k={str(value)[:60]} is no count; expected a whole number from 1.")
    return value


def _yes(source: Source, value: Any) -> bool:
    if not isinstance(value, bool):
        raise DialectError(f"{source.weights}: subtract_b_dec={str(value)[:60]} is neither True nor False.")
    return value


def _activation(dictionary: Dictionary) -> dict[str, Any]:
    """The configuration of saev's activation that gives these codes.

    Raises:
        DialectError: where none does.
    """
    family = dictionary.family
    if family == "relu":
        return {"cls": "Relu", "params": {}}
    if family == "unrectified_topk":
        return {"cls": "TopK", "params": {"top_k": dictionary.k}}
    if family in ("batch_topk", "nested_dictionary"):
        if not (dictionary.threshold == dictionary.threshold[0]).all():
            raise DialectError("saev has one threshold for all latents, and this dictionary has several; use saelens.")
        return {"cls": "BatchTopK", "params": {"top_k": dictionary.k}}
    if family == "topk":
        raise DialectError(
            "saev's TopK has no ReLU: where fewer than k pre-activations are positive it would give negative codes that "
            "this dictionary does not have; use saelens or sparsify."
        )
    raise DialectError(
        f"saev has no {family!r}; it has relu, unrectified_topk, and batch_topk and nested_dictionary with one threshold."
    )
