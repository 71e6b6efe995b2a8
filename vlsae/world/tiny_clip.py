"""The tiny CLIP: its architecture, its tokenizer, and its folder in open_clip's own format."""

from __future__ import annotations

import json
from pathlib import Path

from vlsae.world.captions import concepts

FOLDER = Path(__file__).parent / "tiny"
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


def config() -> dict:
    """The folder's `open_clip_config.json`: a two-tower ViT, 64 px, patch 8, 192 wide, 6 blocks."""
    return {
        "model_cfg": {
            "embed_dim": 192,
            "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 48},
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(lexicon()),
                "width": 128,
                "heads": 4,
                "layers": 2,
                "hf_tokenizer_name": "vlsae-tiny-clip",  # open_clip reads the tokenizer beside this file
            },
        },
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def build(seed: int = 0):
    """A tiny CLIP with random weights, in open_clip's own model class."""
    import torch
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model_cfg = config()["model_cfg"]
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


def save(state_dict: dict, folder: Path = FOLDER) -> Path:
    """Write weights (float16), config and tokenizer as a folder that `open_clip` opens by `local-dir:`."""
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to(torch.float16).contiguous() for k, v in state_dict.items() if v.is_floating_point()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "open_clip_config.json").write_text(json.dumps(config(), indent=2) + "\n")
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
