"""saev (OSU-NLP-Group): `sae.pt`, one line of JSON before what `torch.save` wrote."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop import answers as ask
from vlsae.interop.answers import Answers, Fact
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import describe, ignored_note, other_fields
from vlsae.interop.saev_header import COUNT, FAMILIES, NEWEST, Header, read_header
from vlsae.interop.source import Source
from vlsae.interop.weights import bias_of_raw_input, build, without_transform

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD = "activation.threshold"
PATCHES = ("patches", "image", "content")  # names of the usual choice of tokens
MAY_SUBTRACT = (1, 2)  # of which there are files whose training took b_dec off, and nothing in them says so
SMALLEST, LARGEST = 1e-30, 1e30  # of an answer
SIGNED = (
    "saev's TopK has no ReLU: where fewer than k pre-activations are positive, negative ones are among the codes "
    '(family="topk" drops them).'
)
DROPPED = "Negative values among the k largest are dropped, as was asked; saev keeps them."
OWN_LOADER = "Later versions of saev read this file without taking b_dec off the input, which its training did."
MATRYOSHKA = (
    "Matryoshka runs of these versions took b_dec off the input while they trained; saev's loader does not, and neither do "
    "these codes (subtract_b_dec=True gives those of training)."
)


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
        self.require(source)
        header = read_header(source)
        d, n = _size(source, header)
        told = answers.settle(**_facts(source, header, d), **_sparsity(source, header, answers))
        tensors = {name: source.tensor(name) for name in NAMES}
        if not told.subtract_b_dec:
            tensors["b_enc"] = bias_of_raw_input(tensors["W_enc"], tensors["b_enc"], tensors["b_dec"])
        if told.family == "batch_topk":
            tensors["threshold"] = torch.full((n,), max(0.0, told.threshold))
        settings = {} if told.family == "relu" else {"k": min(told.k, n)}  # saev then takes all, too
        dictionary = build(source, told.family, tensors, settings, _transform(told, d))
        notes = {"topk": [DROPPED], "unrectified_topk": [SIGNED]}.get(told.family, [])
        notes += [OWN_LOADER] if header.schema == 0 else []
        notes += [MATRYOSHKA] if header.schema in MAY_SUBTRACT and not told.subtract_b_dec else []
        notes += [*_tokens_note(source), *ignored_note(header.other, ())]
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


def _size(source: Source, header: Header) -> tuple[int, int]:
    """Width and number of latents, by the tensors; the header must agree."""
    expected = [*NAMES, THRESHOLD] if header.activation == "BatchTopK" else [*NAMES]
    extra = sorted(set(source.values) - set(expected))
    if extra:
        raise DialectError(
            f"{source.weights} also holds {describe(', '.join(extra), 200)}, whose part in the codes is unknown; expected "
            f"{', '.join(expected)} of {header.activation}."
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
    wrong = [f"{name}={describe(cfg[name], 40)}" for name, value in said.items() if name in cfg and cfg[name] != value]
    if wrong:
        raise DialectError(
            f"{source.weights}: its header says {', '.join(wrong)}, its W_enc is [{d}, {n}]; the file is put together from two."
        )
    return d, n


def _facts(source: Source, header: Header, d: int) -> dict[str, Fact]:
    """What is needed beside the activation; the generation says some of it, and the run's configuration beside the file."""
    run = _run(source)
    scaled = header.schema < 2  # later loaders hand out activations as they are, unless told otherwise
    layer = run.get("layer")
    commit = describe(source.header.get("commit", "unknown"), 40)
    return {
        "model": ask.model(),
        "site": ask.site(f"vision.{layer}.resid_post" if type(layer) is int else None, says=layer, width=d),
        "subtract_b_dec": Fact(
            None if header.schema == 1 else header.schema == 0,
            f"whether the encoder takes b_dec off its input (the file was written by commit {commit})",
            "True for commits before e7ca004 of 2025-07-31, False from there on",
            user_wins=header.schema in MAY_SUBTRACT,
            check=ask.truth,
        ),
        "mean": Fact(
            0 if run.get("scale_mean", scaled) is False else None,  # or a file's name, which is not here
            "the mean that saev took off activations before training (scale_mean, on by default; no file holds it)",
            f"{d} numbers, the mean of 524,288 random activations of the training data; 0 if it was off",
            check=partial(_vector, d),
        ),
        "scale": Fact(
            1 if run.get("scale_norm", scaled) is False else None,
            "what saev then divided activations by (scale_norm, on by default; no file holds it)",
            "a positive number, their mean norm without the mean over sqrt(d); 1 if it was off",
            check=partial(_scalar, least=SMALLEST),
        ),
    } | other_fields(header.other, (), f"saev up to schema {NEWEST}")


def _run(source: Source) -> dict[str, Any]:
    """What the run's configuration beside the file, if there is one, says of its data."""
    run = source.config.get("train_data", source.config.get("data"))
    return run if isinstance(run, dict) else {}


def _tokens_note(source: Source) -> list[str]:
    run = _run(source)
    tokens = run.get("tokens", run.get("patches"))
    usual = tokens is None or (isinstance(tokens, str) and tokens in PATCHES)
    return [] if usual else [f"Its run read the tokens {describe(tokens)!r}, not the patches of an image."]


def _sparsity(source: Source, header: Header, answers: Answers) -> dict[str, Fact]:
    """What is needed of the activation; saev had BatchTopK before it had a threshold."""
    if header.activation == "Relu":
        return {"family": Fact("relu", "the family", "relu")}
    k = Fact(header.k, "how many latents are active", "a whole number", check=COUNT)
    family = ask.one_of(*FAMILIES[header.activation])
    if header.activation == "TopK":
        found = "unrectified_topk"
        return {"k": k, "family": Fact(found, "the family", "unrectified_topk, topk", user_wins=True, check=family)}
    held = THRESHOLD in source.shapes
    return {
        "k": k,
        "family": Fact(
            "batch_topk" if held else None,
            "what BatchTopK does in use (without a threshold saev chose top_k of the whole batch, or of each vector)",
            "batch_topk, with a threshold of yours; unrectified_topk or topk, of each vector",
            check=family,
        ),
        "threshold": Fact(
            source.number(THRESHOLD) if held else None,
            "above which pre-activation a latent fires",
            "a number; none with another family",
            needed=answers.given.get("family", "batch_topk") == "batch_topk",
            check=_scalar,
        ),
    }


def _transform(told: Any, d: int) -> InputTransform:
    """`(x - mean) / scale`."""
    kind = {(False, False): "none", (True, False): "centre", (False, True): "sqrt_d", (True, True): "centre_sqrt_d"}
    transform = InputTransform(d, kind[isinstance(told.mean, Tensor), told.scale != 1])
    if transform.kind != "none":
        transform.mean.copy_(torch.as_tensor(told.mean))
        transform.scale.fill_(1 / told.scale)
    return transform


def _vector(d: int, value: Any) -> Tensor | int:
    """A check for `d` numbers; 0 where they all are."""
    try:
        vector = torch.as_tensor(value, dtype=torch.float32).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError):
        vector = torch.empty(0)
    if vector.shape in ((1,), (d,)) and not vector.any():
        return 0
    if vector.shape != (d,) or not torch.isfinite(vector).all():
        raise ValueError(f"give {d} numbers, or 0 for none")
    return vector


def _scalar(value: Any, least: float = -LARGEST) -> float:
    """A check for a number, also as the tensor that saev keeps one in."""
    return float(
        ask.number(least, LARGEST)(value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)
    )


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
