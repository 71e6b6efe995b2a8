"""What a file of learned weights holds of its frozen CLIP: is it the one that they are put on?"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.adaptation.layout import Found
from vlsae.adaptation.prompts import PLACEHOLDER, WORDS, PromptedTexts, token_ids
from vlsae.backbones.base import Backbone

_TOWERS = {  # OpenAI's name of a tower's parts -> Hugging Face's
    "visual": ("vision_model", {"class_embedding": "embeddings.class_embedding",
                                "conv1.weight": "embeddings.patch_embedding.weight",
                                "positional_embedding": "embeddings.position_embedding.weight",
                                "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}),
    "text": ("text_model", {"token_embedding.weight": "embeddings.token_embedding.weight",
                            "positional_embedding": "embeddings.position_embedding.weight",
                            "ln_final": "final_layer_norm"}),
}  # fmt: skip
_BLOCK = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1",
          "layer_norm2": "ln_2"}  # fmt: skip


def openai_weights(base: Backbone) -> dict[str, Tensor]:
    """A CLIP's weights under OpenAI's names, whichever library holds them.

    Raises:
        AdaptationError: for a model that is not built like OpenAI's.
    """
    held = {name.removeprefix("text."): value for name, value in base.model.state_dict().items()}
    if "visual.conv1.weight" in held:
        return held
    if "vision_model.pre_layrnorm.weight" in held:
        return _from_hugging_face(held)
    raise AdaptationError(
        f"{base.spec} is not built like OpenAI's CLIP, for which this file was made; load a CLIP of that kind, such as "
        "open_clip:ViT-B-16/openai."
    )


def _from_hugging_face(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {"visual.proj": held["visual_projection.weight"].T, "text_projection": held["text_projection.weight"].T,
             "logit_scale": held["logit_scale"]}  # fmt: skip
    for ours, (theirs, parts) in _TOWERS.items():
        prefix = "" if ours == "text" else f"{ours}."
        names = {f"{theirs}.{part}": f"{prefix}{name}" for name, part in parts.items()}
        for name, value in held.items():
            block = re.fullmatch(rf"{theirs}\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
            if block and block[2] in _BLOCK:
                found[f"{prefix}transformer.resblocks.{block[1]}.{_BLOCK[block[2]]}.{block[3]}"] = value
            elif block and block[2] == "self_attn.q_proj":
                three = [held[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                found[f"{prefix}transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}"] = torch.cat(three)
            elif name in names:
                found[names[name]] = value
            elif (stem := name.rpartition(".")[0]) in names:
                found[f"{names[stem]}.{name.rpartition('.')[2]}"] = value
    return found


def take_frozen(found: Found, base: Backbone, teacher: str | None = None) -> None:
    """Take the frozen CLIP out of a file that holds a whole `CustomCLIP`, and hold it to the base model.

    Args:
        found: the learned parts are taken already; files without any frozen weights pass.
        base: the model that they are put on.
        teacher: prefix of a second frozen vision tower.

    Raises:
        AdaptationError: where weights are missing or are those of another model.
    """
    weights = openai_weights(base)
    places = {"image_encoder": {k: v for k, v in weights.items() if k.startswith("visual.")}}
    places["text_encoder"] = {
        k: v for k, v in weights.items() if not k.startswith(("visual.", "token_embedding", "logit_"))
    }
    wanted = {f"image_encoder.{k.removeprefix('visual.')}": v for k, v in places["image_encoder"].items()}
    wanted |= {f"text_encoder.{k}": v for k, v in places["text_encoder"].items()} | {
        "logit_scale": weights["logit_scale"]
    }
    if teacher is not None and found.has(re.escape(teacher)):
        wanted |= {f"{teacher}{k.removeprefix('visual.')}": v for k, v in places["image_encoder"].items()}
    if not any(name in found.tensors for name in wanted):
        return
    precision = {name: value.dtype for name, value in found.tensors.items()}
    differ = [name for name, value in wanted.items() if not _same(found.take(name), value, precision.get(name))]
    if differ:
        raise AdaptationError(
            f"{found.source} was made for another model than {base.spec}: {len(differ)} of its {len(wanted)} frozen tensors "
            f"differ, such as {', '.join(differ[:4])}. Load the CLIP that it was trained on."
        )


def _same(held: Tensor, ours: Tensor, precision: torch.dtype) -> bool:
    """Equal up to the rounding of the file's precision."""
    if held.shape != ours.shape:
        return False
    ours = ours.detach().float().cpu()
    if torch.equal(held, ours.to(precision).float()):
        return True
    return torch.allclose(held, ours, rtol=max(torch.finfo(precision).eps, 1e-6), atol=1e-7)


@torch.no_grad()
def take_class_bound(found: Found, base: Backbone, prefix: str = "", n: int | None = None) -> None:
    """Take the embeddings that follow from class names, and see what they tell of the base model and the words around.

    Args:
        found: with `token_prefix` `[C, 1, d]` (the start token) and `token_suffix` (what stands after the context), or without.
        base: the model that the contexts are put on.
        prefix: of their names.
        n: learned vectors, where the rest of "a photo of a" has to stand after them.

    Raises:
        AdaptationError: where the start token is embedded otherwise, or other words stand after the context.
    """
    table = base.token_embedding()
    start = table(token_ids(base.tokenize([PLACEHOLDER]))[0, :1])
    for value in found.take_all(rf"{re.escape(prefix)}(token_prefix)").values():
        if not _all_rows(value, start):
            raise AdaptationError(
                f"{found.source} was made for another model than {base.spec}: the start token of its token_prefix is "
                "embedded otherwise. Load the CLIP that it was trained on."
            )
    rest = PromptedTexts(base, [PLACEHOLDER], len(WORDS.split()), WORDS).word_vectors(base)[n:]
    for value in found.take_all(rf"{re.escape(prefix)}(token_suffix)").values():
        if n is not None and not _all_rows(value[:, : len(rest)], rest):
            raise AdaptationError(
                f"{found.source} was not trained with the words {' '.join(WORDS.split()[n:])!r} between its {n} vectors and "
                f"the class name, by its token_suffix and {base.spec}'s embeddings; other words are not supported."
            )


def _all_rows(held: Tensor, ours: Tensor) -> bool:
    """Whether every class has these embeddings, up to half precision."""
    return held.shape[1:] == ours.shape and torch.allclose(
        held, ours.float().cpu().expand_as(held), rtol=1e-3, atol=1e-4
    )
