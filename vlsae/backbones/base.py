"""The protocol every model speaks, and the one mechanism by which its activations are read and edited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlsae.backbones.head import Head, LinearHead
from vlsae.backbones.hooks import Edit, hooked
from vlsae.backbones.site import Site
from vlsae.images.decode import to_rgb
from vlsae.images.geometry import Geometry

DEFAULT_TEMPLATES = ("a photo of a {}",)
ATTENTION_NAMES = ("attn", "self_attn", "attention")


class EarlyExit(Exception):
    """Ends a forward pass after the last activation that was asked for."""


def find_blocks(tower: nn.Module) -> nn.Module:
    """The stack of equal layers of a tower: its largest homogeneous ModuleList or Sequential."""
    best, best_size = None, -1
    for module in tower.modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) == 0:
            continue
        kinds = {type(child) for child in module}
        size = sum(p.numel() for p in module.parameters())
        if len(kinds) == 1 and len(list(module[0].children())) > 1 and size > best_size:
            best, best_size = module, size
    if best is None:
        raise ValueError(f"No stack of equal blocks was found in {type(tower).__name__}; only 'pooled' can be used.")
    return best


class Backbone:
    """A vision model, often with a text tower, behind one small set of methods.

    Sub-classes set the attributes and the methods below the line; everything else is shared.

    Attributes:
        model: the underlying module, in evaluation mode.
        spec: the name by which `load_model` finds it again.
        geometry: how preprocessing places the image on the patch grid.
        token_roles: "cls", "register" or "patch" for every vision token.
        has_text: whether it has a text tower.
        precision: how the blocks of the vision tower compute (`set_precision`).
    """

    model: nn.Module
    spec: str
    geometry: Geometry
    token_roles: list[str]
    has_text: bool = True
    precision: str = "float32"

    # ---- what a sub-class provides -------------------------------------------------------------------------------

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images to the model's input `[B, 3, H, W]`."""
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Texts to the model's text input."""
        raise NotImplementedError

    def forward_vision(self, pixels: Tensor) -> Tensor:
        """Image embeddings `[B, e]`, not normalised."""
        raise NotImplementedError

    def forward_text(self, tokens: Any) -> Tensor:
        """Text embeddings `[B, e]`, not normalised."""
        raise NotImplementedError

    def tower(self, name: str) -> nn.Module:
        """The module of the "vision" or "text" tower."""
        raise NotImplementedError

    def readout(self, tokens: Tensor) -> Tensor:
        """Vision tokens `[N, d]` through the final norm and projection: `[N, e]`, comparable with text embeddings."""
        raise NotImplementedError

    def token_embedding(self) -> nn.Embedding:
        """The text tower's table of token embeddings, before positions are added."""
        raise NotImplementedError

    def pre_norm(self) -> nn.Module:
        """What the vision tower does to its tokens between the embedding and the first block."""
        return nn.Identity()

    # ---- read-out ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def readout_directions(self, atoms: Tensor, mean: Tensor, step: float | None = None) -> Tensor:
        """How the read-out moves along directions of the token space, `readout(mean + step a) - readout(mean)`.

        Directions alone cannot be read out: the final LayerNorm has a meaning only around a real token.

        Args:
            atoms: `[N, d]`; mean: a real token, `[d]`; step: along each atom, the length of `mean` where None.

        Returns:
            float32 `[N, e]` on the processor, not normalised.
        """
        place = next(self.model.parameters())
        atoms, mean = atoms.to(place), mean.to(place)
        moved = self.readout(mean + (float(mean.norm()) if step is None else step) * atoms)
        return (moved - self.readout(mean[None])).float().cpu()

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by before a softmax."""
        return 100.0

    def sequence_first(self, tower: str) -> bool:
        """Whether this tower's blocks see `[T, B, d]` instead of `[B, T, d]`."""
        return False

    # ---- shapes and identity -------------------------------------------------------------------------------------

    @property
    def patch_grid(self) -> tuple[int, int]:
        """`(rows, columns)` of patches."""
        return self.geometry.rows, self.geometry.columns

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def blocks(self, tower: str) -> nn.Module:
        """The transformer blocks of a tower, found rather than named."""
        self._require(tower)
        return find_blocks(self.tower(tower))

    def sites(self) -> list[str]:
        """Every site that can be captured and edited."""
        names = []
        for tower in ("vision", "text") if self.has_text else ("vision",):
            for i, block in enumerate(self.blocks(tower)):
                streams = ["resid_pre", "resid_post"]
                streams += ["attn_out"] if self._child(block, ATTENTION_NAMES) is not None else []
                streams += ["mlp_in", "mlp_out"] if self._child(block, ("mlp",)) is not None else []
                names += [f"{tower}.{i}.{stream}" for stream in streams]
            names.append(f"{tower}.pooled")
        return names

    @cached_property
    def weight_hash(self) -> str:
        """BLAKE2 of all weights, 16 hexadecimal digits: two models with equal hashes compute the same."""
        digest = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _require(self, tower: str) -> None:
        if tower == "text" and not self.has_text:
            raise ValueError(f"{self.spec} has no text tower; choose a CLIP or SigLIP model for texts and zero-shot.")

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def pixels(self, images) -> Tensor:
        """Model input of PIL images or scenes; a preprocessed float tensor `[B, 3, H, W]` passes through."""
        if isinstance(images, Tensor):
            return images.to(self.device, self.dtype)
        if isinstance(images, Image.Image) or hasattr(images, "image"):
            images = [images]
        pictures = [to_rgb(getattr(image, "image", image)) for image in images]
        return self.preprocess(pictures).to(self.device, self.dtype)

    def forward_image(self, pixels: Tensor) -> Tensor:
        """Image embeddings `[B, e]`, not normalised, with gradients and with the pooled edits in force."""
        return self._pooled("vision", self.forward_vision(pixels))

    @torch.no_grad()
    def encode_image(self, images, batch_size: int = 64) -> Tensor:
        """Unit-norm image embeddings.

        Args:
            images: list of PIL images (or scenes), or preprocessed pixels `[N, 3, H, W]`.
            batch_size: images a forward pass.

        Returns:
            float32 `[N, e]`.
        """
        if isinstance(images, Image.Image):
            images = [images]
        parts = [self.forward_image(self.pixels(images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit-norm text embeddings, float32 `[N, e]`.

        Raises:
            ValueError: for a model without a text tower, or for a single string in place of a list.
        """
        self._require("text")
        if isinstance(texts, str):
            raise ValueError(f"encode_text was given the string {texts!r}; give a list of strings.")
        parts = [self.forward_texts(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    def forward_texts(self, texts: Any) -> Tensor:
        """Embeddings `[B, e]` of strings or of what `tokenize` gave, not normalised, with gradients and pooled edits."""
        tokens = self.tokenize(list(texts)) if isinstance(texts, (list, tuple)) else texts
        return self._pooled("text", self.forward_text(tokens))

    def classifier(self, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> Tensor:
        """One unit text embedding a class, `[C, e]`: the mean over templates of unit embeddings, normalised again."""
        total = sum(self.encode_text([template.format(name) for name in class_names]) for template in templates)
        return F.normalize(total, dim=-1)

    @torch.no_grad()
    def zero_shot(self, images, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> Tensor:
        """Class probabilities of images, `softmax(scale * cos(image, class))`, float32 `[N, C]`.

        Args:
            images: as for `encode_image`.
            class_names: the words to choose among.
            templates: prompts with one `{}`.
        """
        return self.head(class_names, templates)(self.encode_image(images)).softmax(-1)

    def head(self, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> Head:
        """What turns image embeddings into logits of these classes; an adapted model may have another kind."""
        return LinearHead(self.classifier(class_names, templates), self.logit_scale)

    # ---- capture and edit ----------------------------------------------------------------------------------------

    @staticmethod
    def _child(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
        return next((child for name, child in block.named_children() if name in names), None)

    def _place(self, site: Site) -> tuple[nn.Module, bool]:
        """The module of a site and whether its input (rather than its output) is meant."""
        blocks = self.blocks(site.tower)
        block = blocks[site.resolve(len(blocks)).block]
        if site.stream in ("resid_pre", "resid_post"):
            return block, site.stream == "resid_pre"
        module = self._child(block, ATTENTION_NAMES if site.stream == "attn_out" else ("mlp",))
        if module is None:
            raise ValueError(f"{self.spec} has no {site}; choose one of: {', '.join(self.sites())}.")
        return module, site.stream == "mlp_in"

    @contextmanager
    def edit(self, site: str | Site, fn: Edit) -> Iterator[None]:
        """Pass the activations of a site through `fn` in every forward pass inside the block.

        Args:
            site: where.
            fn: maps `[B, T, d]` to the same shape; for `pooled` sites T is 1. Returning its argument leaves the
                model's output bit for bit unchanged. At a residual or pooled site of the vision tower it may return a longer
                batch, whose rows are images of their own from there on: several edits share the blocks before it.

        Raises:
            ValueError: when the site does not exist, or `fn` returns another shape.
        """
        site = Site.parse(site)
        self._require(site.tower)
        if site.stream == "pooled":
            edits = self.__dict__.setdefault("_pooled_edits", [])
            edits.append((site.tower, fn))
            try:
                yield
            finally:
                edits.remove((site.tower, fn))
            return

        def checked(tokens: Tensor) -> Tensor:
            changed = fn(tokens)
            if changed.shape != tokens.shape and not (site.is_whole and changed.shape[1:] == tokens.shape[1:]):
                raise ValueError(f"The edit at {site} returned {tuple(changed.shape)}; return {tuple(tokens.shape)}.")
            return changed

        with self.rewrite(site, checked):
            yield

    def rewrite(self, site: str | Site, fn: Edit):
        """`edit` for a site inside the blocks, with `fn` free to change the number of tokens."""
        site = Site.parse(site)
        module, is_input = self._place(site)
        return hooked(module, fn, is_input=is_input, sequence_first=self.sequence_first(site.tower))

    def _pooled(self, tower: str, embedding: Tensor) -> Tensor:
        for name, fn in self.__dict__.get("_pooled_edits", []):
            if name == tower:
                embedding = fn(embedding[:, None])[:, 0]
        return embedding

    @contextmanager
    def capture(self, *sites: str | Site, stop: bool = False) -> Iterator[dict[str, Tensor]]:
        """Collect activations: yields a dict that every forward pass inside fills, site -> `[B, T, d]`.

        Args:
            sites: where; keys of the dict are their written forms as given.
            stop: end the forward pass as soon as all sites were seen (raises inside `forward`; `tokens` catches it).
        """
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Edit:
            def fn(tokens: Tensor) -> Tensor:
                found[name] = tokens
                if stop and len(found) == len(sites):
                    raise EarlyExit
                return tokens

            return fn

        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(self.edit(site, keep(str(site))))
            yield found

    @torch.no_grad()
    def tokens(self, images, site: str | Site = "vision.-2.resid_post") -> Tensor:
        """Activations of images at a site, float32 `[B, T, d]`; nothing after the site is computed.

        For a site of the text tower, `images` are texts.
        """
        site = Site.parse(site)
        return self.tokens_at(images, [site])[str(site)]

    @torch.no_grad()
    def tokens_at(self, images, sites: Sequence[str | Site]) -> dict[str, Tensor]:
        """Activations at several sites in one forward pass that ends at the last of them, each float32 `[B, T, d]`."""
        sites = [Site.parse(site) for site in sites]
        towers = {site.tower for site in sites}
        if len(towers) != 1:
            raise ValueError(f"One pass reads one tower, but sites of {', '.join(sorted(towers))} were asked for.")
        self._require(tower := towers.pop())
        inputs = self.pixels(images) if tower == "vision" else self.tokenize(list(images))
        forward = self.forward_vision if tower == "vision" else self.forward_text
        with self.capture(*sites, stop=True) as found, suppress(EarlyExit):
            self._pooled(tower, forward(inputs))
        return {site: tokens.float() for site, tokens in found.items()}
