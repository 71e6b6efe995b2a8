"""PEFT's LoRA folders: `adapter_config.json` and `adapter_model.safetensors`, on Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.adaptation.published.clip_lora import Updates, build_lora
from vlsae.backbones.base import Backbone

_WEIGHTS = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.out_proj": "out",
            "mlp.fc1": "mlp_0", "mlp.fc2": "mlp_1"}  # fmt: skip
# transformers 5 saves a tower alone without its prefix, 4 with it
_NAME = re.compile(
    r"base_model\.model\.(?:(?P<tower>vision|text)_model\.)?encoder\.layers\.(?P<block>\d+)\.(?P<weight>.+)\.lora_A\.weight"
)
_NOT_SUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "use_qalora",
                  "trainable_token_indices", "target_parameters")  # fmt: skip
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others change the base model's weights


@LAYOUTS.register("peft")
class PEFTFolder(Layout):
    """`base_model.model.vision_model.encoder.layers.{i}.self_attn.q_proj.lora_A.weight`; scale alpha / r or alpha / sqrt(r)."""

    described = "PEFT's LoRA (base_model.model....lora_A.weight)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"base_model\.model\..*lora_")

    def read(
        self, found: Found, base: Backbone, class_names: Sequence[str] | None, *, tower: str | None = None
    ) -> Adaptation:
        config = found.facts.get("config")
        if config is None:
            raise AdaptationError(
                f"{found.source} is the weight file of a PEFT folder; give the folder with its adapter_config.json."
            )
        _require_plain(found, config)
        alone = (config.get("auto_mapping") or {}).get("base_model_class", "")
        said = next((t for t in ("vision", "text") if t in alone.lower()), tower)
        updates: dict = {}
        for match in [match for name in list(found.tensors) if (match := _NAME.fullmatch(name))]:
            if (weight := _WEIGHTS.get(match["weight"])) is None:
                continue  # left over, and refused with its name
            if match["tower"] is None:
                said = found.assume("tower", said, "vision")
            place = match["tower"] or said, int(match["block"]), weight
            updates[place] = found.take(match[0]), found.take(match[0].replace("lora_A", "lora_B"))
        found.finish()
        _require_all(found, base, config, updates)
        scaling = "rslora" if config.get("use_rslora") else "peft"
        return build_lora(base, updates, float(config["lora_alpha"]), scaling, found.source)


def _require_plain(found: Found, config: dict[str, Any]) -> None:
    """Refuse variants that would be something else than `W + s B A` on the base model."""
    others = {name: config[name] for name in _NOT_SUPPORTED if config.get(name)}
    if config.get("peft_type") != "LORA":
        others["peft_type"] = config.get("peft_type")
    if config.get("bias", "none") != "none":
        others["bias"] = config["bias"]
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        others["init_lora_weights"] = config["init_lora_weights"]
    if others:
        raise AdaptationError(
            f"{found.source} is configured with {others}, which plain LoRA does not have; merge it with PEFT "
            "(merge_and_unload) and load the model that results."
        )


def _require_all(found: Found, base: Backbone, config: dict[str, Any], updates: Updates) -> None:
    """Every weight that the configuration targets must have its update, in the towers that the file adapts."""
    wrong = {len(a) for a, _ in updates.values()} - {config["r"]}
    if wrong or not updates:
        raise AdaptationError(
            f"{found.source} holds updates of the ranks {sorted(wrong)}, but its configuration says r={config['r']}."
        )
    only = config.get("layers_to_transform")
    only = [only] if isinstance(only, int) else only
    missing = [
        f"{tower}_model.encoder.layers.{i}.{name}"
        for tower in sorted({tower for tower, _, _ in updates})
        for i in (range(len(base.blocks(tower))) if only is None else only)
        for name, weight in _WEIGHTS.items()
        if (tower, i, weight) not in updates and _targeted(config, f"{tower}_model.encoder.layers.{i}.{name}")
    ]
    if missing:
        raise AdaptationError(
            f"{found.source} lacks the updates of {', '.join(missing[:6])}, which its configuration targets; it is damaged, or "
            f"is of a smaller model than {base.spec}."
        )


def _targeted(config: dict[str, Any], name: str) -> bool:
    """PEFT's rule: a regular expression on the whole name, or a list of its endings."""

    def matches(rule: Any) -> bool:
        if isinstance(rule, str):  # of a tower alone, whose names may have no prefix
            return any(re.fullmatch(rule, form) for form in (name, name.partition(".")[2]))
        return any(name == end or name.endswith(f".{end}") for end in rule or ())

    return matches(config.get("target_modules")) and not matches(config.get("exclude_modules"))
