"""CLIP-LoRA's own file: `weights`, numbered over the text blocks first and then the vision blocks, and `metadata`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError, build
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.adaptation.lora import LowRank
from vlsae.backbones.base import Backbone

POSITIONS = {  # blocks by the names of the published code; "all" of it ends at 21 blocks, of which ViT-L/14 has 24
    "top": range(11, 12), "top1": range(11, 12), "top2": range(10, 12), "top3": range(9, 12), "bottom": range(4),
    "mid": range(4, 8), "up": range(8, 12), "half-up": range(6, 12), "half-bottom": range(6), "all": range(21),
}  # fmt: skip
_TARGETS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "out"}
Updates = Mapping[tuple[str, int, str], tuple[Tensor, Tensor]]


@LAYOUTS.register("clip_lora")
class CLIPLoRAFile(Layout):
    """`weights.layer_{i}.{q_proj, k_proj, v_proj, proj}.w_lora_A` `[r, in]`, `w_lora_B` `[out, r]`; scale alpha / sqrt(r)."""

    described = "CLIP-LoRA (weights.layer_0.q_proj.w_lora_A)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"weights\.layer_\d+\.")

    def read(
        self, found: Found, base: Backbone, class_names: Sequence[str] | None, *, encoder: str | None = None,
        position: str | None = None, alpha: float | None = None,
    ) -> Adaptation:  # fmt: skip
        facts = {name.removeprefix("metadata."): value for name, value in found.facts.items()}
        encoder = found.assume("encoder", facts.get("encoder", encoder), "both")
        position = found.assume("position", facts.get("position", position), "all")
        alpha = found.assume("alpha", facts.get("alpha", alpha), 1)
        layers = _layers(found, base, encoder, position)
        updates = {}
        for i, (tower, block) in enumerate(layers):
            for name in sorted({t for t in _TARGETS if found.has(rf"weights\.layer_{i}\.{t}\.")}):
                place = f"weights.layer_{i}.{name}.w_lora_"
                updates[tower, block, _TARGETS[name]] = found.take(f"{place}A"), found.take(f"{place}B")
        _require_all(found, layers, updates, facts.get("params"))
        return build_lora(base, updates, float(alpha), "clip_lora", found.source)


def _layers(found: Found, base: Backbone, encoder: str, position: str) -> list[tuple[str, int]]:
    """The blocks that the file's numbers mean."""
    towers = {"text": ["text"], "vision": ["vision"], "both": ["text", "vision"]}
    if encoder not in towers or position not in POSITIONS:
        raise AdaptationError(
            f"{found.source} has encoder={encoder!r} and position={position!r}; known are {', '.join(towers)} and "
            f"{', '.join(POSITIONS)}."
        )
    layers = [(tower, i) for tower in towers[encoder] for i in POSITIONS[position] if i < len(base.blocks(tower))]
    held = {
        int(name.split(".")[1].removeprefix("layer_")) for name in found.tensors if name.startswith("weights.layer_")
    }
    if held != set(range(len(layers))):
        raise AdaptationError(
            f"{found.source} has updates of {len(held)} layers, but encoder={encoder!r} and position={position!r} mean "
            f"{len(layers)} blocks of {base.spec}; the file is damaged, or is of another model."
        )
    return layers


def _require_all(found: Found, layers: list, updates: Updates, params: Sequence[str] | None) -> None:
    """Every layer must have all the projections that were trained."""
    wanted = {_TARGETS.get(f"{p}_proj", "out") for p in params} if params else {target for _, _, target in updates}
    numbers = {layer: i for i, layer in enumerate(layers)}
    missing = [f"layer_{numbers[layer]} {t}" for layer in layers for t in sorted(wanted) if (*layer, t) not in updates]
    if missing:
        raise AdaptationError(f"{found.source} lacks the updates of {', '.join(missing[:6])}; it is damaged.")


def build_lora(base: Backbone, updates: Updates, alpha: float, scaling: str, source: str) -> Adaptation:
    """A LoRA that holds the updates `(A, B)` of (tower, block, weight); weights beside them get none.

    Raises:
        AdaptationError: where ranks or shapes do not fit.
    """
    ranks = {pair[0].shape[0] for pair in updates.values()}
    if len(ranks) != 1:
        raise AdaptationError(
            f"{source} holds updates of the ranks {sorted(ranks)}; only one rank for all can be loaded."
        )
    towers = sorted({tower for tower, _, _ in updates})
    chosen = {tower: sorted({i for t, i, _ in updates if t == tower}) for tower in towers}
    blocks = chosen[towers[0]] if len({tuple(numbers) for numbers in chosen.values()}) == 1 else None
    settings = {"targets": sorted({name.split("_")[0] for _, _, name in updates}), "towers": towers, "blocks": blocks,
                "rank": ranks.pop(), "alpha": alpha, "scaling": scaling}  # fmt: skip
    tensors = {f"updates.{tower}_{i}_{name}.{half}": value for (tower, i, name), pair in updates.items()
               for half, value in zip("AB", pair, strict=True)}  # fmt: skip
    try:
        none = {
            f"updates.{name}": torch.zeros_like(value) for name, value in LowRank(base, **settings).state_dict().items()
        }
    except ValueError as error:
        raise AdaptationError(f"{source} does not fit {base.spec}: {error}") from error
    return build(base, "lora", None, settings, none | tensors, source)
