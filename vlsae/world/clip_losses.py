"""What the tiny CLIP is asked to do: agree with captions, with every concept word, and patch by patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.world.clip_data import SLICES, Batch
from vlsae.world.tiny_clip import MEAN, STD


class Heads(nn.Module):
    """The scales of the losses; needed in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.word_scale = nn.Parameter(torch.tensor(3.6))
        self.word_bias = nn.Parameter(torch.tensor(-4.0))
        self.object_scale = nn.Parameter(torch.tensor(3.0))
        self.patch_scale = nn.Parameter(torch.tensor(3.0))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 `[B, H, W, 3]` to the model's input `[B, 3, H, W]`."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def vision_tokens(visual: nn.Module, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens after the last two blocks, `[B, 1 + K, width]` each, of the class token and the patches `keep [B, K]`."""
    x = visual.conv1(normalise(pixels)).flatten(2).transpose(1, 2)
    x = x + visual.positional_embedding[1:]
    x = torch.gather(x, 1, keep[..., None].expand(-1, -1, x.shape[-1]))
    cls = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([cls, x], 1))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    return x, last(x)


def text_embeddings(model: nn.Module, ids: Tensor) -> Tensor:
    """Unit text embeddings; the causal text tower makes cutting the padding exact."""
    length = int((ids.argmax(1).max() + 1).item())
    ids = ids[:, :length]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection
    return F.normalize(x, dim=-1)


def caption_loss(similarity: Tensor, captions: list[str]) -> Tensor:
    """Symmetric InfoNCE in which equal captions are all positives."""
    numbers = {c: i for i, c in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([numbers[c] for c in captions])
    target = (ids[:, None] == ids[None]).float()
    target = target / target.sum(1, keepdim=True)
    rows, columns = F.log_softmax(similarity, 1), F.log_softmax(similarity.T, 1)
    return -((target * rows).sum(1).mean() + (target * columns).sum(1).mean()) / 2


def every_positive_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax of each present word against all absent ones, so that no strong object hides a weak one."""
    absent = torch.logsumexp(logits.masked_fill(present > 0, -torch.inf), 1, keepdim=True)
    return (F.softplus(absent - logits) * present).sum() / present.sum()


def patch_loss(model: nn.Module, tokens: Tensor, words: Tensor, scale: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of patch tokens, read out like the image embedding, with what they show."""
    patches = F.normalize(model.visual.ln_post(tokens[:, 1:]) @ model.visual.proj, dim=-1)
    total = patches.new_zeros(())
    for kind, labels, weight in (
        ("object", batch.patch_object, 1.0),
        ("color", batch.patch_color, 0.3),
        ("background", batch.patch_background, 0.1),
    ):
        labels = torch.from_numpy(labels)
        shown = labels >= 0
        if shown.any():
            logits = scale.exp() * patches[shown] @ words[SLICES[kind]].T
            total = total + weight * F.cross_entropy(logits, labels[shown])
    return total


def losses(model: nn.Module, heads: Heads, batch: Batch, word_ids: Tensor, caption_ids: Tensor) -> dict[str, Tensor]:
    """All terms of the objective, already weighted; their sum is what is minimised."""
    penultimate, last = vision_tokens(model.visual, torch.from_numpy(batch.pixels), torch.from_numpy(batch.keep))
    images = F.normalize(model.visual.ln_post(last[:, 0]) @ model.visual.proj, dim=-1)
    words = text_embeddings(model, word_ids)
    captions = text_embeddings(model, caption_ids)
    present = torch.from_numpy(batch.present)
    cosine = images @ words.T
    word = F.binary_cross_entropy_with_logits(
        heads.word_scale.exp() * cosine + heads.word_bias, present, reduction="sum"
    )
    objects = SLICES["object"]
    return {
        "word": word / present.sum(),
        "object": 0.5 * every_positive_loss(heads.object_scale.exp() * cosine[:, objects], present[:, objects]),
        "caption": 0.3 * caption_loss(model.logit_scale.exp().clamp(max=100) * images @ captions.T, batch.captions),
        "patch": patch_loss(model, penultimate, words, heads.patch_scale, batch),
        "patch_last": 0.5 * patch_loss(model, last, words, heads.patch_scale, batch),
    }
