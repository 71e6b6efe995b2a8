"""A frozen model with a hole at one site: what a dictionary put there does to everything behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.activations.format import select_roles
from vlsae.activations.reader import ReaderState
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.site import Site

POLICIES = ("patches", "cls", "patches+cls", "all")


class FrozenModel(Protocol):
    """Data whose batches lead on to outputs: what the objective "end_to_end" asks of `train`'s data.

    Attributes:
        x: `[N, d]`, the activations of the batch that `shuffled` gave last.
        logits: `[B, C]`, the outputs of the untouched model for that batch.
        later: activations behind the site, by name, as the untouched model computes them.
    """

    d: int
    x: Tensor
    logits: Tensor
    later: dict[str, Tensor]

    def spliced(self, xhat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`logits` and `later` with `xhat [N, d]` in place of `x`, with gradients to `xhat`."""


class SplicedModel:
    """Images through a frozen model, whose tokens at a site are both training data and replaceable.

    Give it to `vlsae.train` as data, with the objective "end_to_end" for training on the model's output; a local
    dictionary can be trained on the same object for comparison. The parameters of the model are frozen for good.

    Args:
        model: with a text tower, whose zero-shot logits `scale * cos(image, class)` are the output.
        images: sequence of images or scenes.
        class_names: the words to choose among.
        site: of the vision tower.
        templates: prompts with one `{}`.
        tokens: which are data and get replaced: "patches", "cls", "patches+cls" or "all".
        downstream: sites behind `site` whose change is measured; the later blocks' outputs where None.

    Raises:
        ValueError: for no images, fewer than two classes, a site outside the vision tower, or unknown tokens.

    Example:
        >>> from vlsae import load_model, train
        >>> from vlsae.world import scenes
        >>> data = SplicedModel(load_model("tiny"), scenes(4), ["a dog", "a car"], "vision.-2.resid_post")
        >>> sae = train(data, "topk", k=4, n_latents=64, steps=1, batch_size=128, objectives="end_to_end",
        ...             progress=False)
        >>> sae.metadata["site"]
        'vision.-2.resid_post'
    """

    def __init__(
        self,
        model: Backbone,
        images: Sequence,
        class_names: Sequence[str],
        site: str = "vision.-2.resid_post",
        *,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        tokens: str = "patches",
        downstream: Sequence[str] | None = None,
    ):
        parsed = Site.parse(site)
        if parsed.tower != "vision" or parsed.stream == "pooled":
            raise ValueError(f"End-to-end training replaces vision tokens; {site} has none. Try vision.-2.resid_post.")
        if len(images) == 0 or len(class_names) < 2:
            raise ValueError(f"{len(images)} images and {len(class_names)} classes were given; give some, and >= 2.")
        if tokens not in POLICIES:
            raise ValueError(f"tokens={tokens!r} is unknown; replace one of {', '.join(POLICIES)}.")
        model.model.requires_grad_(False)
        self.model, self.images, self.site = model, images, str(site)
        self.chosen = select_roles(tokens, model.token_roles)
        self.tokens = tokens
        self.classes = model.classifier(class_names, templates)
        depth = len(model.blocks("vision"))
        first = parsed.resolve(depth).block
        later = [f"vision.{i}.resid_post" for i in range(first, depth)][parsed.stream == "resid_post" :]
        self.downstream = list(later if downstream is None else downstream)
        self._fill(np.arange(1))
        self.d = self.x.shape[1]

    @property
    def fingerprint(self) -> str:
        """The model, site, classes and images that a continued run must find again."""
        digest = hashlib.blake2b(self.model.weight_hash.encode(), digest_size=8)
        digest.update(f"{self.site}{self.chosen}{self.downstream}{len(self.images)}".encode())
        digest.update(self.classes.cpu().numpy().tobytes())
        for i in range(len(self.images)):
            digest.update(self.model.pixels([self.images[i]]).float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _run(self, edit: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with self.model.edit(self.site, edit), self.model.capture(*self.downstream) as found:
            embedding = F.normalize(self.model.forward_image(self.pixels).float(), dim=-1)
        return self.model.logit_scale * embedding @ self.classes.to(embedding).T, dict(found)

    @torch.no_grad()
    def _fill(self, numbers: np.ndarray) -> None:
        """Make these images the current batch."""
        self.pixels = self.model.pixels([self.images[i] for i in numbers])
        seen = []
        self.logits, self.later = self._run(lambda tokens: seen.append(tokens) or tokens)
        self.x = seen[0][:, self.chosen].flatten(0, 1).float()

    def shuffled(self, batch_size: int, state: ReaderState | None = None) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass over whole images in random order from a state on, about `batch_size` tokens at a time."""
        state = state or ReaderState()
        order = np.random.default_rng((state.seed, 0)).permutation(len(self.images))
        per_image = len(self.chosen)
        count = max(1, batch_size // per_image)
        for start in range(state.position // per_image, len(order), count):
            part = order[start : start + count]
            self._fill(part)
            yield self.x, ReaderState(state.seed, state.rank, (start + len(part)) * per_image)

    def spliced(self, xhat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, C]` and later activations with `xhat [N, d]` in place of the current batch's tokens."""

        def put(tokens: Tensor) -> Tensor:
            out = tokens.clone()
            out[:, self.chosen] = xhat.to(tokens).unflatten(0, (len(tokens), -1))
            return out

        return self._run(put)
