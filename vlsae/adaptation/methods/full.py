"""Full fine-tuning: every weight behind the embeddings of a tower is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation
from vlsae.backbones.base import Backbone


@ADAPTATIONS.register("full")
class FullFineTuning(Adaptation):
    """All weights of the vision tower, and of the text tower if wished, under the zero-shot head (as arXiv 2212.00638).

    Args:
        base: where the weights start.
        class_names: ignored; no head is bound to them.
        towers: "vision", "text" or both.
        alpha: how far from the base's weights (0) to those that were trained (1) these stand; `interpolate` writes it
            down, it changes nothing here.

    Raises:
        ValueError: for an unknown tower.
    """

    method, changes = "full", ("vision",)
    recipe: ClassVar = {"optimizer": "adamw", "lr": 3e-5, "weight_decay": 0.1, "epochs": 10, "batch_size": 32}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, towers: Sequence[str] = ("vision",),
                 alpha: float = 1.0):  # fmt: skip
        if not towers or not set(towers) <= {"vision", "text"}:
            raise ValueError(f"towers={towers}: give 'vision', 'text' or both.")
        super().__init__(towers=list(towers), alpha=alpha)
        self.changes = tuple(towers)
        self.weights = nn.ParameterDict(
            {_key(name): nn.Parameter(p.detach().clone()) for name, p in weights_behind(base, towers).items()}
        )

    def attach(self, model: Backbone) -> None:
        own = {id(p): self.weights[_key(name)] for name, p in weights_behind(model, self.changes).items()}
        for module in model.model.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in own:  # wherever it is used: some models tie weights
                    module._parameters[name] = own[id(parameter)]


@torch.enable_grad()
def weights_behind(model: Backbone, towers: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters on which the embeddings of these towers depend, projections included, as gradients tell.

    Example:
        >>> from vlsae import load_model
        >>> names = weights_behind(load_model("tiny"), ["vision"])
        >>> "visual.proj" in names, "logit_scale" in names
        (True, False)
    """
    named = dict(model.model.named_parameters())
    frozen = [p for p in named.values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    found: set[str] = set()
    for tower in towers:
        gradients = torch.autograd.grad(_embedding(model, tower).sum(), list(named.values()), allow_unused=True)
        found |= {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    for p in frozen:
        p.requires_grad_(False)
    return {name: p for name, p in named.items() if name in found}


def _embedding(model: Backbone, tower: str) -> Tensor:
    if tower == "text":
        return model.forward_texts(["X"])
    size = model.geometry.height, model.geometry.width
    return model.forward_vision(torch.zeros(1, 3, *size, device=model.device, dtype=model.dtype))


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's name may hold no dot
