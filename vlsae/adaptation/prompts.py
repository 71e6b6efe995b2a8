"""Learned vectors among the tokens: contexts in texts, prompts after the patches, replaced from block to block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.backbones.base import Backbone
from vlsae.backbones.hooks import Edit, hooked

PLACEHOLDER = "X"
WORDS = "a photo of a"  # what most published prompts start from


def clean_name(name: str) -> str:
    """A class name as prompt learners write it: spaces instead of underscores."""
    return name.replace("_", " ")


class PromptedTexts:
    """Class prompts with places for `n` learned context vectors.

    Args:
        model: with a text tower.
        class_names: one prompt each, `"{context} {class}."`.
        n: context vectors; they replace the first `n` words of the context, wherever it stands.
        words: the context's words; `n` placeholders where None. More words than `n` stay as they are: MaPLe's two
            vectors take the first two places of "a photo of a".
        position: "end" (class after the context), "front", or "middle", of the class name.

    Raises:
        ValueError: for an unknown position, or a prompt whose context does not fit the text tower.
    """

    def __init__(
        self, model: Backbone, class_names: Sequence[str], n: int, words: str | None = None, position: str = "end"
    ):
        self.n = n
        context = (words or " ".join([PLACEHOLDER] * n)).split()
        names = [clean_name(name) for name in class_names]
        before = {"end": len(context), "front": 0, "middle": n // 2}
        if position not in before:
            raise ValueError(f"position={position!r} is unknown; use 'end', 'front' or 'middle'.")
        first, second = " ".join(context[: before[position]]), " ".join(context[before[position] :])
        texts = [" ".join(part for part in (first, name, second) if part) + "." for name in names]
        self.tokens = model.tokenize(texts)
        start = self._start(model)
        ahead = min(n, before[position])
        lengths = [0] * len(names) if ahead == n else self._lengths(model, names, start)
        self.positions = torch.tensor(
            [[start + i + (length if i >= ahead else 0) for i in range(n)] for length in lengths]
        )
        if int(self.positions.max()) >= token_ids(self.tokens).shape[1] - 1:
            raise ValueError(
                f"{n} context vectors and the class name do not fit into the {token_ids(self.tokens).shape[1]} places of "
                f"{model.spec}'s text tower; use fewer vectors or shorter names."
            )

    @staticmethod
    def _start(model: Backbone) -> int:
        """The place of a text's first word."""
        a, b = (token_ids(model.tokenize([text + "."]))[0] for text in (f"{PLACEHOLDER} {PLACEHOLDER}", "a a"))
        return int((a != b).nonzero()[0])

    @staticmethod
    def _lengths(model: Backbone, names: Sequence[str], start: int) -> list[int]:
        """Tokens of every name, by where a placeholder after it lands."""
        mark = token_ids(model.tokenize([f"{PLACEHOLDER} {PLACEHOLDER}."]))[0, start]
        ids = token_ids(model.tokenize([f"{name} {PLACEHOLDER}" for name in names]))
        return [int((row == mark).nonzero()[-1]) - start for row in ids]

    @torch.no_grad()
    def word_vectors(self, model: Backbone) -> Tensor:
        """The token embeddings of the context's own words, `[n, d]`, to start from."""
        ids = token_ids(self.tokens)
        return model.token_embedding()(ids[0, self.positions[0].to(ids.device)]).clone()

    def encode(self, model: Backbone, context: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Unit embeddings of all prompts, `[C, e]`, with gradients.

        Args:
            model: the same.
            context: `[n, d]`, or `[C, n, d]` for one a class.
            deep: `[n, d]` each; before block 1, 2, ... they replace what stands at the context's places.
        """
        return self._encode(model, self.tokens, self.positions, context, deep)

    def encode_each(self, model: Backbone, contexts: Tensor) -> Tensor:
        """Unit embeddings `[B, C, e]` of all prompts under B contexts `[B, n, d]`, one an image."""
        many, classes = len(contexts), len(self.positions)
        tokens = _map_tokens(self.tokens, lambda ids: ids.repeat(many, 1))
        found = self._encode(model, tokens, self.positions.repeat(many, 1), contexts.repeat_interleave(classes, 0))
        return found.unflatten(0, (many, classes))

    @staticmethod
    def _encode(
        model: Backbone, tokens: Any, positions: Tensor, context: Tensor, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(hooked(model.token_embedding(), _put(context, positions)))
            for block, vectors in enumerate(deep, 1):
                stack.enter_context(model.rewrite(f"text.{block}.resid_pre", _put(vectors, positions)))
            return F.normalize(model.forward_texts(tokens).float(), dim=-1)


def _put(vectors: Tensor, positions: Tensor) -> Edit:
    """An edit that puts `[n, d]` or `[texts, n, d]` at `positions [texts, n]`."""

    def fn(tokens: Tensor) -> Tensor:
        index = positions.to(tokens.device)[:, :, None].expand(-1, -1, tokens.shape[-1])
        return tokens.scatter(1, index, vectors.to(tokens).expand(len(tokens), -1, -1))

    return fn


@contextmanager
def vision_prompts(model: Backbone, shallow: Tensor, deep: Sequence[Tensor] = ()) -> Iterator[None]:
    """Prompts after the patches, in force while the block lasts.

    They join after the position embedding, at the end of the sequence, and pass the norm before the first block like
    every token; before block 1, 2, ... what became of them is replaced, until `deep` ends.

    Args:
        model: whose vision tower runs inside.
        shallow: `[v, d]`; deep: `[v, d]` each.
    """
    v = len(shallow)

    def append(tokens: Tensor) -> Tensor:
        return torch.cat([tokens, model.pre_norm()(shallow.to(tokens)).expand(len(tokens), -1, -1)], 1)

    def replace(vectors: Tensor) -> Edit:
        return lambda tokens: torch.cat([tokens[:, :-v], vectors.to(tokens).expand(len(tokens), -1, -1)], 1)

    with ExitStack() as stack:
        stack.enter_context(model.rewrite("vision.0.resid_pre", append))
        for block, vectors in enumerate(deep, 1):
            stack.enter_context(model.rewrite(f"vision.{block}.resid_pre", replace(vectors)))
        yield


def token_ids(tokens: Any) -> Tensor:
    """`[texts, places]` of whatever a model's `tokenize` gave."""
    return tokens if isinstance(tokens, Tensor) else tokens["input_ids"]


def _map_tokens(tokens: Any, fn) -> Any:
    return fn(tokens) if isinstance(tokens, Tensor) else {name: fn(part) for name, part in tokens.items()}


def width(model: Backbone, tower: str) -> int:
    """The width of a tower's tokens."""
    if tower == "text":
        return model.token_embedding().embedding_dim
    norms = [m for m in model.blocks("vision")[0].modules() if isinstance(m, torch.nn.LayerNorm)]
    return norms[0].normalized_shape[0]


def prompt_depth(model: Backbone, depth: int | None, *towers: str) -> int:
    """How many blocks of these towers have prompts of their own: what is asked for, or 9 (as published) or fewer.

    Raises:
        ValueError: where a tower has fewer blocks.
    """
    blocks = min(len(model.blocks(tower)) for tower in towers)
    depth = min(9, blocks) if depth is None else depth
    if not 1 <= depth <= blocks:
        raise ValueError(f"depth={depth}: {model.spec} can have prompts in 1 to {blocks} blocks ({', '.join(towers)}).")
    return depth
