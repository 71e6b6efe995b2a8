"""sparsify (EleutherAI): a folder a hookpoint, with `sae.safetensors` and `cfg.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.interop import answers as ask
from vlsae.interop.answers import Answers, Fact
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.fields import ignored_note, other_fields
from vlsae.interop.source import Source
from vlsae.interop.weights import build, half_note, without_transform

NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
KNOWN = {"activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection",
         "transcode", "signed", "d_in"}  # fmt: skip
FAMILIES = ("topk", "transcoder", "relu")  # that are written
STREAMS = {"": ("resid_pre", "resid_post"), ".mlp": ("mlp_in", "mlp_out")}  # what a module reads and gives
MULTI = "Trained with Multi-TopK as a second loss, which is no part of the codes."


@DIALECTS.register("sparsify")
class Sparsify(Dialect):
    """TopK of rectified pre-activations; `b_dec` is taken off the input unless `transcode`."""

    name = "sparsify"
    project = "sparsify"

    def sniff(self, source: Source) -> bool:
        return source.has(*NAMES)

    def read(self, source: Source, answers: Answers) -> Dictionary:
        cfg = source.config
        if not cfg:
            raise DialectError(
                f"{source.weights} has no cfg.json beside it, which says k and what the codes are; fetch the whole folder."
            )
        d = _width(source, cfg)
        told = answers.settle(**_facts(source, cfg, d))
        for name in ("transcode", "signed"):
            if not isinstance(getattr(told, name), bool):
                raise _wrong(source, name, getattr(told, name), "true or false")
        if type(told.k) is not int or not 1 <= told.k <= source.shapes["W_dec"][0]:
            raise _wrong(source, "k", told.k, f"a whole number from 1 to its {source.shapes['W_dec'][0]} latents")
        if told.signed and told.transcode:
            raise _wrong(source, "signed", True, "false for a transcoder; no version of sparsify had both")
        tensors = {name: source.tensor(name) for name in NAMES}
        ours = {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"]}
        family = "transcoder" if told.transcode else "abs_topk" if told.signed else "topk"
        dictionary = build(source, family, ours | {k: tensors[k] for k in ("W_dec", "b_dec")}, {"k": told.k})
        notes = [*ignored_note(cfg, KNOWN), *([MULTI] if cfg.get("multi_topk") else [])]
        notes += half_note(source, "W_dec", self.project)
        dictionary.metadata = {"model": told.model, "site": told.site, "hookpoint": _hookpoint(source), "sparsify": cfg,
                               "notes": notes}  # fmt: skip
        return dictionary

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        """A ReLU dictionary becomes one with `k` of all latents, which is the same."""
        if dictionary.family not in FAMILIES:
            raise DialectError(
                f"sparsify's codes are the k largest of rectified pre-activations, which {dictionary.family!r} is not; it has "
                f"{', '.join(FAMILIES)}."
            )
        plain = without_transform(dictionary, self.project)
        cfg = {
            "activation": "topk",
            "expansion_factor": max(1, plain.n_latents // plain.d),
            "normalize_decoder": False,
            "num_latents": plain.n_latents,
            "k": plain.settings.get("k", plain.n_latents),
            "multi_topk": False,
            "skip_connection": False,
            "transcode": plain.family == "transcoder",
            "d_in": plain.d,
        }
        tensors = dict(zip(NAMES, (plain.W_enc.T, plain.b_enc, plain.W_dec, plain.b_dec)))
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "sae.safetensors") as partial:
            save_file({name: value.detach().cpu().float().contiguous() for name, value in tensors.items()}, partial)
        with replacing(folder / "cfg.json") as partial:
            partial.write_text(json.dumps(cfg), encoding="utf-8")


def _wrong(source: Source, name: str, value: Any, expected: str) -> DialectError:
    return DialectError(f"{source.folder / 'cfg.json'}: {name}={str(value)[:60]} does not fit; expected {expected}.")


def _width(source: Source, cfg: dict[str, Any]) -> int:
    """The width, after a look at what the codes depend on beside the four tensors."""
    if "W_skip" in source.shapes or cfg.get("skip_connection"):
        raise _wrong(source, "skip_connection", True, "false: the part of the output that is linear in the input (W_skip) has "
                     "no place in codes and atoms")  # fmt: skip
    missing, extra = sorted(set(NAMES) - set(source.shapes)), sorted(set(source.shapes) - set(NAMES))
    if missing or extra:
        raise DialectError(
            f"{source.weights} misses {', '.join(missing) or 'nothing'} and also holds {', '.join(extra)[:200] or 'nothing'}, "
            f"whose part in the codes is unknown; expected {', '.join(NAMES)}."
        )
    activation = cfg.get("activation", "topk")  # the first versions had nothing else
    if activation != "topk":
        reason = (
            "the largest of each of k groups of latents is no TopK" if activation == "groupmax" else "no family has it"
        )
        raise _wrong(source, "activation", activation, f"topk; {reason}")
    n, d = (*source.shapes["W_dec"], 0, 0)[:2]
    if not source.shapes["W_dec"] == source.shapes["encoder.weight"] == (n, d):
        raise DialectError(
            f"{source.weights}: W_dec and encoder.weight have shapes {source.shapes['W_dec']} and "
            f"{source.shapes['encoder.weight']}; expected the same [num_latents, d_in]."
        )
    latents = cfg.get("num_latents") or None
    if latents is None and type(cfg.get("expansion_factor")) is int:
        latents = d * cfg["expansion_factor"]
    for name, value, size in (("d_in", cfg.get("d_in"), d), ("num_latents", latents, n)):
        if value is not None and value != size:
            raise _wrong(source, name, value, f"{size}, by the shape of W_dec")
    return d


def _facts(source: Source, cfg: dict[str, Any], d: int) -> dict[str, Fact]:
    """What has to be known, and which of it the configuration says."""
    transcode = cfg.get("transcode", None if "skip_connection" in cfg else False)  # both came with transcoders
    hookpoint = _hookpoint(source)
    facts = {
        "model": ask.model(),
        "site": ask.site(_site(hookpoint, transcode), says=hookpoint, width=d),
        "k": Fact(cfg.get("k") or None, "how many latents are active", "a whole number"),
        "transcode": Fact(
            transcode, "whether it is a transcoder, which does not take b_dec off its input", "True, False"
        ),
        "signed": Fact(cfg.get("signed", False), "whether the k largest by size are chosen", "True, False"),
    }
    return facts | other_fields(cfg, KNOWN, "sparsify 1.3")


def _hookpoint(source: Source) -> str:
    return source.folder.resolve().name


def _site(hookpoint: str, transcode: Any) -> str | None:
    """Our name of a module of a CLIP by Hugging Face; blocks of other models could be anyone's."""
    found = re.fullmatch(r"(?:clip\.)?(vision|text)_model\.encoder\.layers\.(\d+)(|\.mlp)", hookpoint)
    if found is None or transcode is None:
        return None
    tower, block, module = found.groups()
    return f"{tower}.{int(block)}.{STREAMS[module][0 if transcode else 1]}"
