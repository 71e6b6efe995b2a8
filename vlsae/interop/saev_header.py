"""The line of JSON before the weights of a file of saev, of every generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlsae.interop.answers import number
from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe
from vlsae.interop.source import Source

SCHEMAS = (0, 1, 2, 3, 4, 5)  # 0: the first files, which have no such field
NEWEST = SCHEMAS[-1]
FAMILIES = {
    "Relu": ("relu",),
    "TopK": ("unrectified_topk", "topk"),
    "BatchTopK": ("batch_topk", "unrectified_topk", "topk"),
}
HEADER = {"schema", "cfg", "cls", "commit", "lib"}
CFG = {"d_vit", "d_model", "exp_factor", "d_sae", "activation", "n_reinit_samples", "ghost_grads", "use_ghost_grads",
       "sparsity_coeff", "l1_coeff", "remove_parallel_grads", "normalize_w_dec", "seed", "reinit_blend",
       "reinit_enc_dec_tranpose"}  # fmt: skip  # saev's spelling; all but sizes and activation are of training
TRAINING = {"key", "kind", "sparsity", "aux"}  # of every activation
PARAMS = {"Relu": set(), "TopK": {"top_k"}, "BatchTopK": {"top_k", "momentum"}}
COUNT = number(1, whole=True)


@dataclass(frozen=True)
class Header:
    """What the first line says.

    Attributes:
        schema: 0 to 5; activation: "Relu", "TopK" or "BatchTopK"; k: its count of active latents, where it says one;
        cfg: of the whole model; other: fields that no version has.
    """

    schema: int
    activation: str
    k: int | None
    cfg: dict[str, Any]
    other: dict[str, Any]


def read_header(source: Source) -> Header:
    """The header of any generation.

    Raises:
        DialectError: for a schema or an activation that is unknown, and for a count that is none.
    """
    header = source.header
    schema = header.get("schema", 0)
    if type(schema) is not int or schema not in SCHEMAS:
        raise DialectError(
            f"{source.weights} has schema {describe(schema, 40)}; known are none and 1 to {NEWEST}. Is there a newer vlsae?"
        )
    if schema == 0:
        return Header(0, "Relu", None, header, _beyond((header, CFG)))
    cfg = header.get("cfg")
    cfg = cfg if isinstance(cfg, dict) else {}
    found, params, inner = header.get("cls"), cfg, {}
    inside = schema > 1 or "activation" in cfg  # schema 1 has two layouts: before, the activation was the class of cfg
    if inside:
        inner = cfg.get("activation")
        inner = inner if isinstance(inner, dict) else {}
        found, params = inner.get("cls"), inner.get("params")
        params = params if isinstance(params, dict) else {}
    if not isinstance(found, str) or found not in FAMILIES:
        reason = "; it chooses among a whole batch by size, which no family computes" if found == "AbsBatchTopK" else ""
        raise DialectError(
            f"{source.weights} names the activation {describe(found)!r}; expected Relu, TopK or BatchTopK{reason}."
        )
    known = TRAINING if inside else CFG
    parts = [(cfg, CFG), (inner, {"cls", "params"})] if inside else []
    other = _beyond((header, HEADER), *parts, (params, known | PARAMS[found]))
    return Header(schema, found, _count(source, params.get("top_k")), cfg, other)


def _beyond(*parts: tuple[dict[str, Any], set[str]]) -> dict[str, Any]:
    """The fields that are not among those known, of each part."""
    return {name: value for part, known in parts for name, value in part.items() if name not in known}


def _count(source: Source, said: Any) -> int | None:
    try:
        return None if said is None else int(COUNT(said))
    except ValueError as error:
        raise DialectError(f"{source.weights}: top_k={describe(said)} is no count: {error}.") from error
