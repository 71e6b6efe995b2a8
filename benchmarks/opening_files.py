"""Files of `opening.py`: each written by the library whose format it is, and opened by that library's own loader."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peers import without
from torch import Tensor, nn

K = 32
UNKNOWN = {"model": "unknown", "site": "unknown"}


@torch.no_grad()
def filled(module: nn.Module) -> nn.Module:
    """The module with random weights, none of them zero and atoms of nearly unit norm, as a training step leaves them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if parameter.ndim == 2:
            parameter.div_(min(parameter.shape) ** 0.5)
        else:
            parameter.abs_()
    return module


@dataclass(frozen=True)
class File:
    """A kind of file.

    Args:
        needs: the distribution that writes and opens it; None for ours.
        write: makes one in a folder for `d, n_latents` and returns the path to open.
        theirs: the library's own loader, given that path.
        weights: the file of weights in the folder.
        answers: what `vlsae.load_dictionary` is told.
    """

    needs: str | None
    write: Callable[[Path, int, int], Path]
    theirs: Callable[[Path], nn.Module]
    weights: str
    answers: dict = field(default_factory=lambda: UNKNOWN)


def write_ours(folder: Path, d: int, n: int) -> Path:
    from vlsae.dictionaries.topk import TopKDictionary

    return filled(TopKDictionary(d, n, k=min(K, n))).save(folder)


def open_ours(path: Path) -> nn.Module:
    from vlsae.dictionaries.checkpoint import load_dictionary

    return load_dictionary(path)


def sae_lens(architecture: str, **options) -> File:
    """Inference checkpoints, except for what `options` say of the configuration."""

    def write(folder: Path, d: int, n: int) -> Path:
        from sae_lens.registry import get_sae_class

        kind, config = get_sae_class(architecture)
        filled(kind(config(d_in=d, d_sae=n, **options))).save_model(folder)
        return folder

    def theirs(path: Path) -> nn.Module:
        from sae_lens import SAE

        return SAE.load_from_disk(path)

    return File("sae-lens", write, theirs, "sae_weights.safetensors")


def dictionary_learning(kind: str) -> File:
    """A folder of its trainer; `load_dictionary` of its utils calls `from_pretrained` of the class."""

    def write(folder: Path, d: int, n: int) -> Path:
        without("datasets", "nnsight", "wandb", "zstandard", "circuitsvis")
        from dictionary_learning import dictionary
        from dictionary_learning.trainers.top_k import AutoEncoderTopK

        topk = kind == "AutoEncoderTopK"
        module = filled(AutoEncoderTopK(d, n, K) if topk else getattr(dictionary, kind)(d, n))
        torch.save(module.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": kind, "activation_dim": d, "dict_size": n, **({"k": K} if topk else {})}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        return folder

    def theirs(path: Path) -> nn.Module:
        without("datasets", "nnsight", "wandb", "zstandard", "circuitsvis")
        from dictionary_learning.utils import load_dictionary

        with contextlib.redirect_stdout(io.StringIO()):  # it tells what it normalises
            return load_dictionary(str(path), "cpu")[0]

    return File("dictionary-learning", write, theirs, "ae.pt")


def write_sparsify(folder: Path, d: int, n: int) -> Path:
    from sparsify import SparseCoder, SparseCoderConfig

    filled(SparseCoder(d, SparseCoderConfig(num_latents=n, k=K))).save_to_disk(folder)
    return folder


def open_sparsify(path: Path) -> nn.Module:
    from sparsify import SparseCoder

    return SparseCoder.load_from_disk(path)


def _overcomplete():
    without("cv2", "timm", "skimage", "skimage.segmentation")
    import matplotlib.pyplot as plt

    if not hasattr(plt.cm, "get_cmap"):
        plt.cm.get_cmap = plt.get_cmap
    import overcomplete.sae

    return overcomplete.sae


def overcomplete(pickled: bool) -> File:
    """A TopKSAE as a pickle of the whole model, or as the state dict that a fresh one loads."""

    def write(folder: Path, d: int, n: int) -> Path:
        model = filled(_overcomplete().TopKSAE(d, n, top_k=K))
        torch.save(model if pickled else model.state_dict(), folder / "model.pt")
        return folder / "model.pt"

    def theirs(path: Path) -> nn.Module:
        library = _overcomplete()
        if pickled:
            return torch.load(path, weights_only=False)
        state = torch.load(path)
        n, d = state["dictionary._weights"].shape
        model = library.TopKSAE(d, n, top_k=K)
        model.load_state_dict(state)
        return model

    said = UNKNOWN if pickled else UNKNOWN | {"family": "topk", "k": K, "normalization": "l2"}
    return File("overcomplete", write, theirs, "model.pt", said)


FILES = {
    "vlsae topk": File(None, write_ours, open_ours, "sae_weights.safetensors", {}),
    "SAELens standard": sae_lens("standard"),
    "SAELens jumprelu, b_dec not taken off": sae_lens("jumprelu", apply_b_dec_to_input=False),
    "SAELens topk, decoder norms in its codes": sae_lens("topk", k=K, rescale_acts_by_decoder_norm=True),
    "dictionary_learning AutoEncoderTopK": dictionary_learning("AutoEncoderTopK"),
    "dictionary_learning AutoEncoder, not normalised": dictionary_learning("AutoEncoder"),
    "dictionary_learning JumpReluAutoEncoder": dictionary_learning("JumpReluAutoEncoder"),
    "sparsify": File("eai-sparsify", write_sparsify, open_sparsify, "sae.safetensors"),
    "overcomplete TopKSAE, state dict": overcomplete(pickled=False),
    "overcomplete TopKSAE, pickled model": overcomplete(pickled=True),
}


def touched(found: nn.Module | dict[str, Tensor]) -> float:
    """The sum of all weights, so that a loader that only maps a file reads it too."""
    tensors = found if isinstance(found, dict) else found.state_dict()
    return sum(float(value.detach().sum()) for value in tensors.values())
