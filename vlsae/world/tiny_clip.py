"""The tiny CLIPs: their architectures, their tokenizer, and their folders in open_clip's own format."""

from __future__ import annotations

import json
from pathlib import Path

from vlsae.world.captions import concepts

ARCHITECTURES = {
    "tiny": {
        "embed_dim": 192,
        "vision": {"patch_size": 8, "width": 192, "layers": 6, "head_width": 48},
        "text": {"width": 128, "heads": 4, "layers": 2},
    },
    "tiny16": {  # another patch grid, width and depth, for what is compared between models
        "embed_dim": 128,
        "vision": {"patch_size": 16, "width": 104, "layers": 4, "head_width": 26},
        "text": {"width": 64, "heads": 4, "layers": 2},
    },
}
FOLDERS = {name: Path(__file__).parent / name for name in ARCHITECTURES}
FOLDER = FOLDERS["tiny"]
CONTEXT_LENGTH = 40
GRAMMAR = ("a", "an", "the", "and", "on", "of", "in", "with", "left", "right", "above", "below", "photo", "picture",
           "image", "background", "no", "word")  # fmt: skip
SPECIAL = ("<|pad|>", "<|unknown|>", "<|startoftext|>")
END = "<|endoftext|>"  # has the highest id, as open_clip's argmax pooling expects
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def lexicon() -> list[str]:
    """The words of the tokenizer, one token each, in id order."""
    kinds = concepts()
    words = {w for kind in kinds if kind != "font" for phrase in kinds[kind] for w in phrase.split()}
    return [*SPECIAL, *sorted(words | set(GRAMMAR)), END]


def config(architecture: str = "tiny") -> dict:
    """The folder's `open_clip_config.json`: a two-tower ViT at 64 px of one of `ARCHITECTURES`.

    Raises:
        ValueError: for an unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} is unknown; use one of {', '.join(ARCHITECTURES)}.")
    sizes = ARCHITECTURES[architecture]
    return {
        "model_cfg": {
            "embed_dim": sizes["embed_dim"],
            "vision_cfg": {"image_size": 64, **sizes["vision"]},
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(lexicon()),
                **sizes["text"],
                "hf_tokenizer_name": "vlsae-tiny-clip",  # open_clip reads the tokenizer beside this file
            },
        },
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def build(seed: int = 0, architecture: str = "tiny"):
    """A CLIP of one of `ARCHITECTURES` with random weights, in open_clip's own model class."""
    import torch
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model_cfg = config(architecture)["model_cfg"]
    text = {k: v for k, v in model_cfg["text_cfg"].items() if k != "hf_tokenizer_name"}
    return CLIP(model_cfg["embed_dim"], model_cfg["vision_cfg"], text)


def build_tokenizer():
    """The word-level tokenizer as a `tokenizers.Tokenizer`: lower case, one token a word, start and end marks."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = lexicon()
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(SPECIAL[2], words.index(SPECIAL[2])), (END, words.index(END))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[2]} $A {END}", pair=None, special_tokens=marks
    )
    tokenizer.add_special_tokens([*SPECIAL, END])
    return tokenizer


def save(state_dict: dict, folder: Path = FOLDER, architecture: str = "tiny") -> Path:
    """Write weights (float16), config and tokenizer as a folder that `open_clip` opens by `local-dir:`."""
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to(torch.float16).contiguous() for k, v in state_dict.items() if v.is_floating_point()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "open_clip_config.json").write_text(json.dumps(config(architecture), indent=2) + "\n")
    build_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": CONTEXT_LENGTH,
                "pad_token": SPECIAL[0],
                "unk_token": SPECIAL[1],
                "bos_token": SPECIAL[2],
                "eos_token": END,
            },
            indent=2,
        )
        + "\n"
    )
    return folder


def to_transformers(model, architecture: str = "tiny"):
    """The same CLIP as a `transformers.CLIPModel`, outputs equal up to rounding.

    Args:
        model: an open_clip CLIP with native ViT and text transformer.
        architecture: which of `ARCHITECTURES` it has.

    Returns:
        `transformers.CLIPModel` in evaluation mode; save it with `save_pretrained`.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    cfg = config(architecture)["model_cfg"]
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    end = text["vocab_size"] - 1
    shared = {"hidden_act": "gelu", "projection_dim": cfg["embed_dim"]}
    hf = CLIPModel(
        CLIPConfig(
            projection_dim=cfg["embed_dim"],
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision["head_width"],
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                **shared,
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "vocab_size": text["vocab_size"],
                "max_position_embeddings": text["context_length"],
                "pad_token_id": 0,
                "bos_token_id": SPECIAL.index("<|startoftext|>"),
                "eos_token_id": end,
                **shared,
            },
        )
    )
    source, target = model.state_dict(), {}

    def blocks(ours: str, theirs: str, n: int) -> None:
        for i in range(n):
            a, b = f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                parts = source[f"{a}.attn.in_proj_{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    target[f"{b}.self_attn.{name}_proj.{kind}"] = part
                for x, y in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                    target[f"{b}.{y}.{kind}"] = source[f"{a}.{x}.{kind}"]

    blocks("visual.transformer", "vision_model", vision["layers"])
    blocks("transformer", "text_model", text["layers"])
    for kind in ("weight", "bias"):
        target[f"vision_model.pre_layrnorm.{kind}"] = source[f"visual.ln_pre.{kind}"]
        target[f"vision_model.post_layernorm.{kind}"] = source[f"visual.ln_post.{kind}"]
        target[f"text_model.final_layer_norm.{kind}"] = source[f"ln_final.{kind}"]
    target["vision_model.embeddings.class_embedding"] = source["visual.class_embedding"]
    target["vision_model.embeddings.patch_embedding.weight"] = source["visual.conv1.weight"]
    target["vision_model.embeddings.position_embedding.weight"] = source["visual.positional_embedding"]
    target["text_model.embeddings.token_embedding.weight"] = source["token_embedding.weight"]
    target["text_model.embeddings.position_embedding.weight"] = source["positional_embedding"]
    target["visual_projection.weight"] = source["visual.proj"].T.contiguous()
    target["text_projection.weight"] = source["text_projection"].T.contiguous()
    target["logit_scale"] = source["logit_scale"]
    missing, unexpected = hf.load_state_dict({k: v.to(torch.float32) for k, v in target.items()}, strict=False)
    left = [name for name in missing if "position_ids" not in name]
    if left or unexpected:
        raise ValueError(f"The conversion left {left} unset and {unexpected} unused; transformers changed its CLIP.")
    return hf.eval()
