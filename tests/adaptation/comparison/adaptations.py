"""Small stand-ins for adapted models, whose whole difference from the base is known."""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.methods.vpt import VPT
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import LinearHead
from vlsae.world import scenes

SITE = "vision.-2.resid_post"
NAMES = ["cat", "ball"]


def animals(n: int, seed: int = 1):
    """Scenes of one object, half cats and half balls, and which: a constant answer is right on half."""
    many = scenes(6 * n, seed=seed, n_objects=(1, 0, 0, 0), names=tuple(NAMES))
    rows = [[i for i in range(len(many)) if many[i].objects[0].name == name][: n // 2] for name in NAMES]
    return [many[i] for row in rows for i in row], [c for c, row in enumerate(rows) for _ in row]


class Shifted(Adaptation):
    """A vision tower whose tokens before the last block are moved by `shift [d]`; texts and head stay."""

    method, changes = "shifted", ("vision",)

    def __init__(self, shift: Tensor):
        super().__init__()
        self.shift = shift

    def vision(self, model: Backbone):
        return model.base.edit(SITE, lambda tokens: tokens + self.shift.to(tokens))


class SwappedNames(Adaptation):
    """A head that answers with the other class; the vision tower stays."""

    method, changes = "swapped", ("head",)

    def head(self, model: Backbone, class_names, templates):
        return LinearHead(model.base.classifier(class_names, templates).flip(0), model.logit_scale)


class Everything(VPT):
    """Prompts, moved tokens before the site and other class embeddings, all at once."""

    def vision(self, model: Backbone):
        stack = ExitStack()
        stack.enter_context(model.base.edit(SITE, lambda tokens: tokens + 3 * self.shallow[0]))
        stack.enter_context(super().vision(model))
        return stack

    def head(self, model: Backbone, class_names, templates):
        head = super().head(model, class_names, templates)
        noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
        return LinearHead(F.normalize(head.weight + 0.15 * noise, dim=1), head.scale)


def everything(base: Backbone) -> AdaptedBackbone:
    adapted = AdaptedBackbone(base, Everything(base, n_prompts=2, depth=3, seed=1))
    for part in (adapted.adaptation.shallow, *adapted.adaptation.deep):
        part.data.mul_(100)  # large enough to change answers
    return adapted


def shifted(base: Backbone, size: float, seed: int = 0) -> AdaptedBackbone:
    d = base.tokens(scenes(1), SITE).shape[-1]
    return AdaptedBackbone(base, Shifted(size * torch.randn(d, generator=torch.Generator().manual_seed(seed))))


def swapped(base: Backbone) -> AdaptedBackbone:
    return AdaptedBackbone(base, SwappedNames())
