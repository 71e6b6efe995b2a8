"""What a whole pickled model of `overcomplete` holds beside its tensors: its parts, hooks and attributes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vlsae.interop.dialect import DialectError
from vlsae.interop.fields import describe
from vlsae.interop.modules import HOLDERS, SavedModule
from vlsae.pickles import Inert

JUMP = {"kernel_fn", "bandwidth", "bandwith"}
LAYER = {"in_dimensions", "nb_concepts", "device", "_fused_dictionary"}
# what the classes of releases 0.0.2 to 0.3.0 set in themselves; what of it changes codes is read
ATTRIBUTES = {
    "SAE": set(), "TopKSAE": {"top_k"}, "RATopKSAE": {"top_k"}, "JumpSAE": JUMP, "RAJumpSAE": JUMP,
    "BatchTopKSAE": {"top_k", "threshold_momentum", "running_threshold"},
    "MpSAE": {"k", "dropout"}, "OMPSAE": {"k", "dropout", "max_iter"},
    "DictionaryLayer": LAYER | {"normalization", "nb_components", "dimensions"},
    "RelaxedArchetypalDictionary": LAYER | {"delta", "nb_candidates"},
    "MLPEncoder": {"input_size", "n_components", "hidden_dim", "nb_blocks", "hidden_activation", "output_activation",
                   "norm_layer", "residual"},
    "TieableEncoder": {"tied_to"}, "IdentityEncoder": {"input_size"},
}  # fmt: skip
MODEL = {"nb_concepts", "n_components", "device", "fitted", "_fitted_info"}
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
LAYERS = ("DictionaryLayer", "RelaxedArchetypalDictionary")
PARTS = {  # where which classes may stand
    "dictionary": LAYERS,
    "encoder.tied_to": LAYERS,
    "encoder": ("MLPEncoder", "TieableEncoder", "IdentityEncoder", "Sequential"),
    "encoder.mlp_blocks": ("ModuleList",),
    "encoder.final_block": ("Sequential",),
}
STEP = re.compile(r"encoder\.(?:final_block\.)?\d|encoder\.final_activation")
CHAINS = (["Linear", "ReLU"], ["Linear", "BatchNorm1d", "ReLU"])


def unknown_attributes(module: SavedModule) -> dict[str, Any]:
    """Attributes that no release sets, by dotted name: a fork or a user may compute with them. Tensors and hooks are not
    among them: both are refused.
    """
    found = {}
    for path, part in _parts(module):
        kind, prefix = _kind(part), f"{path}." if path else ""
        known = ATTRIBUTES.get(kind, set()) | (MODEL if not path else set())
        for name, value in part.state.items():
            foreign = (
                name not in known if kind in ATTRIBUTES else name == "forward"
            )  # torch's own layers read what they set
            torch_own = name in (*HOLDERS, *HOOKS, "training") or (name.startswith("_") and value in (None, {}, []))
            if foreign and not torch_own and f"{prefix}{name}" not in module.shapes:
                found[f"{prefix}{name}"] = value
    return found


def check_parts(module: SavedModule, jumps: bool) -> None:
    """Refuse a pickled model with parts or hooks that no family computes.

    Args:
        module: the whole model.
        jumps: whether it takes what its encoder has before the last activation.
    """
    where, chain = module.source.weights, []
    for path, part in _parts(module):
        kind = _kind(part)
        hooks = [name for name in HOOKS if part.state.get(name)]
        if hooks:
            raise DialectError(
                f"{where}: its {path or 'model'} has hooks ({', '.join(hooks)}: {describe(part.state[hooks[0]])}), which may "
                "change codes and are code that is not run. Remove them and save it again, or save its state_dict()."
            )
        if STEP.fullmatch(path):
            chain += [kind] * (kind != "Identity")
        elif path and kind not in PARTS.get(path, ()):
            raise DialectError(
                f"{where}: its {describe(path)} is a {describe(kind)}, which no release has there; known parts are "
                f"{', '.join(PARTS)}."
            )
    ends = [*chain[:-1], "ReLU"] if jumps and module.kind("encoder.final_activation") else chain
    if module.kind("encoder") in ("MLPEncoder", "Sequential") and ends not in CHAINS:
        raise DialectError(
            f"{where}: its encoder is {describe(' -> '.join(chain)) or 'empty'}; only Linear -> ReLU is read, with or without "
            "a BatchNorm1d between them."
        )


def _parts(module: SavedModule) -> Iterator[tuple[str, Inert]]:
    """The model and all modules in it, by path; nothing of a state dict."""
    todo = [("", module.object())]
    while todo:
        path, part = todo.pop()
        if isinstance(part, Inert):
            yield path, part
            inner = part.state.get("_modules")
            below = list(inner.items()) if isinstance(inner, dict) else []
            todo += [(f"{path}.{name}" if path else str(name), value) for name, value in reversed(below)]


def _kind(part: Inert) -> str:
    return part.name.rpartition(".")[2]
