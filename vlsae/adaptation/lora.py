"""Low-rank updates of weights: the mathematics, where they go, and their way in and out of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vlsae.backbones.base import ATTENTION_NAMES, Backbone

TARGETS = ("q", "k", "v", "out", "mlp")
SCALINGS: Mapping[str, Callable[[float, int], float]] = {
    "clip_lora": lambda alpha, rank: alpha / math.sqrt(rank),
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
    "peft": lambda alpha, rank: alpha / rank,
}


class LoRA(nn.Module):
    """A parametrisation `W + s B A` of a weight, or of one of the parts stacked in its rows (arXiv 2106.09685, eq. 3).

    `A` starts at random and `B` at 0, so that nothing changes at first.

    Args:
        shape: `(out, in)` of the part.
        rank: rows of A `[rank, in]` and columns of B `[out, rank]`.
        scale: s.
        part: which of the parts; q, k and v of a fused projection are 0, 1 and 2.
        parts: of `out` rows each.
        generator: of the start.

    Example:
        >>> lora = LoRA((2, 3), rank=1, scale=2.0)
        >>> _ = nn.init.ones_(lora.A), nn.init.ones_(lora.B)
        >>> lora(torch.zeros(2, 3))[0].detach()
        tensor([2., 2., 2.])
    """

    def __init__(self, shape: tuple[int, int], rank: int, scale: float, *, part: int = 0, parts: int = 1,
                 generator: torch.Generator | None = None):  # fmt: skip
        super().__init__()
        self.scale, self.part, self.parts = scale, part, parts
        self.A = nn.Parameter(torch.empty(rank, shape[1]))
        self.B = nn.Parameter(torch.zeros(shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)

    def delta(self) -> Tensor:
        """What is added to the part, `[out, in]`."""
        return self.scale * self.B @ self.A

    def forward(self, weight: Tensor) -> Tensor:
        out = len(self.B)
        changed = weight + F.pad(self.delta(), (0, 0, self.part * out, (self.parts - 1 - self.part) * out))
        # torch sums products in another order for weights that want no gradient; B = 0 is to be the identity bit for bit
        return changed if torch.is_grad_enabled() else changed.requires_grad_(weight.requires_grad)


@dataclass(frozen=True)
class Place:
    """A weight that takes an update: parameter `weight` of `module`, or one of the parts stacked in its rows."""

    module: nn.Module
    weight: str = "weight"
    part: int = 0
    parts: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = getattr(self.module, self.weight).shape
        return rows // self.parts, columns


def places(block: nn.Module, target: str) -> dict[str, Place]:
    """The weights of a transformer block that a target means.

    Args:
        block: of an open_clip, timm or Hugging Face tower.
        target: "q", "k", "v", "out" (of the attention) or "mlp" (all its linear layers).

    Returns:
        Name, such as "q" or "mlp_0", to place.

    Raises:
        ValueError: for an unknown target, or a block that has no such weight.
    """
    if target not in TARGETS:
        raise ValueError(f"LoRA has no target {target!r}; choose among {', '.join(TARGETS)}.")
    children = dict(block.named_children())
    if target == "mlp":
        layers = [m for m in children.get("mlp", nn.Identity()).modules() if isinstance(m, nn.Linear)]
        found = {f"mlp_{i}": Place(layer) for i, layer in enumerate(layers)}
    else:
        attention = next((children[name] for name in ATTENTION_NAMES if name in children), nn.Identity())
        place = _attention_place(attention, target)
        found = {target: place} if place else {}
    if not found:
        raise ValueError(f"A block {type(block).__name__} has no weight for the LoRA target {target!r}.")
    return found


def _attention_place(attention: nn.Module, target: str) -> Place | None:
    if target == "out":
        names = ("out_proj", "proj")
        return next((Place(getattr(attention, name)) for name in names if hasattr(attention, name)), None)
    part = "qkv".index(target)
    if getattr(attention, "in_proj_weight", None) is not None:
        return Place(attention, "in_proj_weight", part, 3)
    if hasattr(attention, "qkv"):
        return Place(attention.qkv, "weight", part, 3)
    return Place(getattr(attention, f"{target}_proj")) if hasattr(attention, f"{target}_proj") else None


class LowRank(nn.ModuleDict):
    """Updates of chosen weights of a model, each a `LoRA`; put into a copy of it by `inject`.

    Args:
        model: whose shapes they take; it is not touched.
        targets: some of "q", "k", "v", "out", "mlp".
        rank, alpha: as in `LoRA`; `scaling` turns them into s: alpha / rank for "peft", alpha / sqrt(rank) for
            "clip_lora" and "rslora".
        towers: "vision", "text" or both.
        blocks: numbers of blocks, negative ones from the end; all where None.
        seed: of the random start.

    Raises:
        ValueError: for an unknown target or scaling, a rank below 1, or a block that does not exist.

    Example:
        >>> from vlsae import load_model
        >>> sorted(LowRank(load_model("tiny"), ("q", "out"), rank=2, blocks=(-1,)))
        ['vision_5_out', 'vision_5_q']
    """

    def __init__(self, model: Backbone, targets: Sequence[str] = ("q", "k", "v"), *, rank: int = 2, alpha: float = 1.0,
                 scaling: str = "clip_lora", towers: Sequence[str] = ("vision",), blocks: Sequence[int] | None = None,
                 seed: int = 0):  # fmt: skip
        if scaling not in SCALINGS:
            raise ValueError(f"scaling={scaling!r} is unknown; use one of {', '.join(SCALINGS)}.")
        if rank < 1 or not targets or not towers:
            raise ValueError(
                f"rank={rank}, targets={targets}, towers={towers}: give a rank of 1 or more, and some of both."
            )
        generator = torch.Generator().manual_seed(seed)
        self.targets, self.towers, self.chosen = tuple(targets), tuple(towers), blocks
        scale = SCALINGS[scaling](alpha, rank)
        super().__init__({
            name: LoRA(place.shape, rank, scale, part=place.part, parts=place.parts, generator=generator)
            for name, place in self.places(model).items()
        })  # fmt: skip

    def places(self, model: Backbone) -> dict[str, Place]:
        """Where each update goes in `model`."""
        found: dict[str, Place] = {}
        for tower in self.towers:
            stack = model.blocks(tower)
            for i in range(len(stack)) if self.chosen is None else self.chosen:
                if not -len(stack) <= i < len(stack):
                    raise ValueError(
                        f"The {tower} tower of {model.spec} has {len(stack)} blocks; there is no block {i}."
                    )
                at = {k: v for target in self.targets for k, v in places(stack[i], target).items()}
                found |= {f"{tower}_{i % len(stack)}_{k}": place for k, place in at.items()}
        return found

    def inject(self, model: Backbone) -> None:
        """Let every chosen weight of `model` be `W + s B A` from now on; W itself is kept and can be shared."""
        for name, place in self.places(model).items():
            parametrize.register_parametrization(place.module, place.weight, self[name])

    def merge(self, model: Backbone) -> None:
        """Replace the injected updates by weights of `model`'s own that are their sums; it is as quick as before."""
        with torch.no_grad():
            dense = {_key(p): (p, getattr(p.module, p.weight).clone()) for p in self.places(model).values()}
        self._originals = {}
        for key, (place, value) in dense.items():
            parametrize.remove_parametrizations(place.module, place.weight, leave_parametrized=False)
            self._originals[key] = getattr(place.module, place.weight)
            setattr(place.module, place.weight, nn.Parameter(value))

    def unmerge(self, model: Backbone) -> None:
        """Undo `merge`: the original tensors come back, bit for bit, with the updates on top of them."""
        for place in self.places(model).values():
            if (original := self._originals.pop(_key(place), None)) is not None:
                setattr(place.module, place.weight, original)
        self.inject(model)


def _key(place: Place) -> tuple[int, str]:
    return id(place.module), place.weight
