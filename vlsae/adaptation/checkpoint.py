"""Adaptations on disk: `adaptation.json` says how to build them, `adaptation.safetensors` holds their tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlsae import __version__
from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.atomic import replacing
from vlsae.backbones.base import Backbone

SCHEMA = 1
CONFIG, WEIGHTS = "adaptation.json", "adaptation.safetensors"


class AdaptationError(ValueError):
    """An adaptation that is missing, damaged, of another format, or made for another model."""


def save_adaptation(model: AdaptedBackbone, folder: str | Path) -> Path:
    """Write the learned parts of a model; each file is replaced in one step."""
    folder, adaptation = Path(folder), model.adaptation
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in adaptation.state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    facts = {
        "schema": SCHEMA,
        "version": __version__,
        "method": adaptation.method,
        "settings": adaptation.settings,
        "class_names": adaptation.class_names,
        "base": model.original.spec,
        "base_hash": model.original.weight_hash,
    }
    with replacing(folder / CONFIG) as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def read_adaptation(base: Backbone, folder: str | Path) -> AdaptedBackbone:
    """Open what `save_adaptation` wrote.

    Raises:
        AdaptationError: for a missing or damaged file, tensors that do not fit, or another base model.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdaptationError(
            f"{folder} does not hold a whole adaptation ({type(error).__name__}: {error}); {CONFIG} and {WEIGHTS} are "
            "needed. Write it again with `vlsae adapt` or AdaptedBackbone.save."
        ) from error
    if facts.get("schema") != SCHEMA or not {"method", "settings", "class_names", "base", "base_hash"} <= set(facts):
        raise AdaptationError(f"{folder / CONFIG} has schema {facts.get('schema')!r}; this version reads {SCHEMA}.")
    if facts["base_hash"] != base.weight_hash:
        raise AdaptationError(
            f"{folder} was made for {facts['base']} (weights {facts['base_hash']}), but {base.spec} has "
            f"{base.weight_hash}; load that model."
        )
    adaptation = build(base, facts["method"], facts["class_names"], facts["settings"], tensors, str(folder))
    return AdaptedBackbone(base, adaptation.to(base.device))


def build(
    base: Backbone, method: str, class_names: Sequence[str] | None, settings: dict[str, Any], tensors: dict[str, Tensor],
    source: str,
) -> Adaptation:  # fmt: skip
    """Make a method by its settings and fill it with its tensors.

    Raises:
        AdaptationError: where either does not fit the model.
    """
    kind = ADAPTATIONS.get(method)
    try:
        adaptation = kind(base, class_names, **settings)
    except ValueError as error:
        raise AdaptationError(f"{source} holds a {method} that does not fit {base.spec}: {error}") from error
    load_tensors(adaptation, tensors, source)
    return adaptation


def load_tensors(adaptation, tensors: dict, source: str) -> None:
    """Fill an adaptation with exactly its tensors; none may be missing, left over, or of another shape."""
    wanted = adaptation.state_dict()
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    wrong = [f"{n} {tuple(tensors[n].shape)} instead of {tuple(wanted[n].shape)}" for n in set(wanted) & set(tensors)
             if wanted[n].shape != tensors[n].shape]  # fmt: skip
    if missing or extra or wrong:
        raise AdaptationError(
            f"The tensors of {source} do not fit {adaptation.method} on this model: missing {missing}, left over {extra}, "
            f"of other shapes {wrong}. Check the base model and the settings."
        )
    adaptation.load_state_dict(tensors)
