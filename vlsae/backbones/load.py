"""From a model's name to the model."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from vlsae.backbones.base import Backbone
from vlsae.backbones.precision import set_precision
from vlsae.world.tiny_clip import FOLDERS

FORMS = (
    "'tiny', 'tiny16', 'open_clip:ARCH/TAG' (open_clip:ViT-B-16/openai), 'hf:ID' (hf:openai/clip-vit-base-patch16), or "
    "a folder"
)


@contextmanager
def _hub() -> Iterator[None]:
    """Without a network, look into the local cache at once instead of retrying for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load_model(spec: str | Path | Backbone, device: str = "cpu", precision: str = "float32") -> Backbone:
    """Open a model by name.

    Args:
        spec: "tiny" or "tiny16" (the embedded CLIPs, of 8 x 8 and 4 x 4 patches), "open_clip:ARCH/TAG" or
            "open_clip:ARCH/FILE", "hf:ID-or-folder", or a local folder in either format. A `Backbone` passes through.
        device: "cpu", "cuda", ...
        precision: how the blocks of the vision tower compute (see `set_precision`): "float32", "float32_onednn" (twice
            as fast on AMD processors with AVX-512) or "bfloat16" (some times as fast on processors and GPUs that have
            its instructions, tokens about 1 % off). On CUDA torch computes convolutions, here that of patches, in TF32
            unless `torch.backends.cudnn.allow_tf32` is False: tokens 5e-4 of the largest off.

    Returns:
        A `Backbone` in evaluation mode.

    Raises:
        ValueError: for an unknown name or precision, a folder of unknown format, or a `Backbone` of another precision.
        OSError: when weights are neither on disk nor to be had from the network; says what to place where.

    Example:
        >>> model = load_model("tiny")
        >>> model.patch_grid, model.encode_text(["a red cat"]).shape
        ((8, 8), torch.Size([1, 192]))
    """
    if isinstance(spec, Backbone):
        if precision not in ("float32", spec.precision):
            raise ValueError(
                f"precision={precision!r} was asked for, but a loaded model of {spec.precision} was given; "
                "give its name, or change it with vlsae.backbones.set_precision."
            )
        return spec
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for, but this torch sees no CUDA device; use device='cpu'.")
    return set_precision(_load(str(spec), device), precision)


def _load(text: str, device: str) -> Backbone:
    from vlsae.backbones.huggingface import load_hugging_face
    from vlsae.backbones.openclip import load_open_clip

    if text in FOLDERS:
        model = load_open_clip(str(FOLDERS[text]), device)
        model.spec = text
        return model
    kind, _, name = text.partition(":")
    if Path(text).is_dir():
        kind, name = _folder_kind(Path(text)), text
    loaders = {"open_clip": load_open_clip, "hf": load_hugging_face}
    if kind not in loaders or not name:
        raise ValueError(f"Unknown model {text!r}; give {FORMS}.")
    try:
        with _hub():
            return loaders[kind](name, device)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "download" not in str(error):
            raise
        raise OSError(
            f"The weights of {text!r} are neither in the local cache nor to be had from the network. Where there is a "
            "network, download them once; here, put the model's folder (config, weights, tokenizer, preprocessor) on "
            f"disk and give its path, or give open_clip:ARCH/FILE. The library said: {str(error).partition(chr(10))[0]}"
        ) from error


def _folder_kind(folder: Path) -> str:
    if (folder / "open_clip_config.json").exists():
        return "open_clip"
    if (folder / "config.json").exists() and "model_type" in json.loads((folder / "config.json").read_text()):
        return "hf"
    raise ValueError(
        f"{folder} is no model folder: neither open_clip_config.json nor a transformers config.json is in it."
    )
