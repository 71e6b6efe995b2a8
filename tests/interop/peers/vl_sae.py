"""VL-SAE's own classes, from a checkout in `VLSAE_PEER_VLSAE`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch

from tests.interop.make_fixtures import fresh, inputs, record

PEER = "transcribed for inference: ssfgunner/VL-SAE 2d4a675, cvlms/sae_trainer/sae_model.py"
D, N, K = 8, 32, 6


def source() -> ModuleType:
    """Their module of models."""
    path = Path(os.environ["VLSAE_PEER_VLSAE"]) / "cvlms" / "sae_trainer" / "sae_model.py"
    spec = importlib.util.spec_from_file_location("vl_sae_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(cls: type) -> torch.nn.Module:
    """One of their models, whose weights are not of unit norm and whose biases are not zero."""
    model, generator = cls(D, N, topk=K), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(torch.randn(part.shape, generator=generator))
    return model


def make(root: Path) -> None:
    models, x = source(), inputs(D)
    cases = {
        "vl_sae": (models.VL_SAE, "openclip_ViT-B-32_VL_SAE_6_4_best.pth", "vl_sae", "image", {}),
        "sae_v": (models.SAE_V, "sae_v.pth", "topk", "image", {}),
        "sae_d_image": (models.SAE_D, "sae_d.pth", "topk", "image", {"modality": "image"}),
        "sae_d_text": (models.SAE_D, "sae_d.pth", "topk", "text", {"modality": "text"}),
    }
    for case, (cls, name, family, modality, answers) in cases.items():
        folder = fresh(root, case)
        torch.save(drawn(cls).state_dict(), folder / name)
        theirs = cls(D, N, topk=K)
        theirs.load_state_dict(torch.load(folder / name, map_location="cpu"))
        theirs.eval()
        with torch.no_grad():
            image, text, of_image, of_text = theirs(
                **{"vision_embeddings" if modality == "image" else "text_embeddings": x}
            )
        codes, reconstruction = (of_image, image) if modality == "image" else (of_text, text)
        record(
            folder, x, codes, reconstruction, peer=PEER, dialect="vl_sae", family=family, answers={"k": K, **answers}
        )
