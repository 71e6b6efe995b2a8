"""MSAE's own classes, from the folder of its `sae.py` in `VLSAE_PEER_MSAE`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tests.interop.make_fixtures import fresh, inputs, record

PEER = "transcribed for inference: MSAE c0bf439, sae.py (WolodjaZ/MSAE, as copied at that commit in SelenaGeRuiqi/MSAE)"
D, N = 8, 32
CASES = {  # name of the case: (activation, tied, appendix of the name, what ours is called, what a user must say)
    "relu": ("ReLU", False, "ReLU_003", "relu", {}),
    "relu_tied": ("ReLU", True, "ReLU_01", "relu", {}),
    "topk": ("TopKReLU_5", False, "TopKReLU_5", "topk", {}),
    "msae_uw": ("TopKReLU_4", False, "TopKReLU_4_UW", "nested_sparsity", {}),
    "msae_rw": ("TopKReLU_4", False, "TopKReLU_4_RW", "nested_sparsity", {"ks": [4, 8, 32]}),
    "batch_topk": ("BatchTopKReLU_5", False, "BatchTopKReLU_5", "batch_topk", {"threshold": 0.0}),
    "jumprelu": (f"JumpReLU_{N}", False, f"JumpReLU_{N}", "jumprelu", {}),
}


def source() -> ModuleType:
    """Their module."""
    folder = os.environ["VLSAE_PEER_MSAE"]
    sys.path.insert(0, folder)
    for name in ("sae", "utils"):
        sys.modules.pop(name, None)
    import sae

    sys.path.remove(folder)
    return sae


def saved(sae: ModuleType, folder: Path, activation: str, tied: bool, name: str) -> str:
    """A file as their trainer leaves it, and its path."""
    generator = torch.Generator().manual_seed(1)
    model = sae.Autoencoder(N, D, activation, tied=tied, normalize=False, latent_soft_cap=0.0)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(torch.randn(part.shape, generator=generator))
        if "Jump" in activation:
            model.activation.log_threshold.add_(0.5)  # some above, some below what they cut
        model.pre_bias.mul_(0.3)
        model.latents_activation_frequency.fill_(7)
    content = {
        "model": model.state_dict(),
        "mean_center": 0.7 + torch.randn(D, generator=generator),
        "scaling_factor": 0.43,
        "target_norm": np.sqrt(D),
    }
    path = folder / f"{N}_{D}_{name}_{tied}_False_0.0_cc3m_ViT-B~32_train_image_100_{D}.pth"
    torch.save(content, path)
    return str(path)


def by_hand(sae: ModuleType, path: str) -> tuple:
    """What their `load_model` gives, which cannot open a JumpReLU: its size is not in what it reads of the name."""
    content = torch.load(path, weights_only=False)
    model = sae.Autoencoder(N, D, f"JumpReLU_{N}", latent_soft_cap=0.0)
    model.load_state_dict(content["model"])
    return model, content["mean_center"], content["scaling_factor"], content["target_norm"]


def make(root: Path) -> None:
    sae, x = source(), inputs(D)
    for case, (activation, tied, name, family, answers) in CASES.items():
        folder = fresh(root, case)
        path = saved(sae, folder, activation, tied, name)
        if family == "jumprelu":
            sae.load_model = partial(by_hand, sae)
        theirs = sae.SAE(path)
        theirs.eval()
        with torch.no_grad():
            kept, full = theirs.encode(x)
            codes = kept if family == "topk" else full
            reconstruction = theirs.decode(codes)
        record(folder, x, codes, reconstruction, peer=PEER, dialect="msae", family=family, answers=answers)
