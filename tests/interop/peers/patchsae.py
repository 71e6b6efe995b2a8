"""PatchSAE's own classes, from a checkout in `VLSAE_PEER_PATCHSAE`, and the same file as HugoFry's code names its class."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from tests.interop.make_fixtures import fresh, inputs, record

CODE = "transcribed for inference: PatchSAE as in StrockLee/patchsae-main 77a4e55"
PEER = f"{CODE} (SparseAutoencoder, save_model, tasks.utils.load_sae)"
GATED = f"{CODE}, with forward_gated as its forks have it (it is empty there)"
HUGOFRY = "structure only: HugoFry/mats_sae_training_for_ViTs, codes by PatchSAE's class, which descends from it"
D, FACTOR = 8, 4


def source() -> SimpleNamespace:
    """Their modules."""
    folder = os.environ["VLSAE_PEER_PATCHSAE"]
    sys.path.insert(0, folder)
    import wandb.util

    wandb.util.generate_id = lambda: "fixture"  # which newer versions have moved, and which is random
    names = {
        "config": "src.sae_training.config",
        "model": "src.sae_training.sparse_autoencoder",
        "tasks": "tasks.utils",
    }
    modules = {short: importlib.import_module(name) for short, name in names.items()}
    sys.path.remove(folder)
    return SimpleNamespace(**modules)


def drawn(peer: SimpleNamespace, **settings):
    """One of their models with the configuration of their script."""
    config = peer.config.ViTSAERunnerConfig(
        d_in=D, expansion_factor=FACTOR, model_name="openai/clip-vit-base-patch16", block_layer=-2, l1_coefficient=8e-5,
        lr=4e-4, **settings,
    )  # fmt: skip
    model, generator = peer.model.SparseAutoencoder(config, "cpu"), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(torch.randn(part.shape, generator=generator))
        model.W_enc.mul_(0.5)
    return model


def opened(peer: SimpleNamespace, path: Path):
    """By their own loader; newer torch wants to be told of their classes."""
    with torch.serialization.safe_globals([peer.config.ViTSAERunnerConfig, torch.device]):
        return peer.tasks.load_sae(str(path), "cpu")[0]


def renamed(config) -> object:
    """The configuration as an object of HugoFry's class, which older files name."""
    fields = [name for name in vars(config) if name not in ("custom_clip_ckpt_path", "norm_eps", "debug_numerics")]
    cls = make_dataclass("ViTSAERunnerConfig", fields, namespace={"__module__": "sae_training.config"})
    sys.modules["sae_training"], sys.modules["sae_training.config"] = ModuleType("sae_training"), ModuleType("config")
    sys.modules["sae_training.config"].ViTSAERunnerConfig = cls
    cls.__module__ = "sae_training.config"
    return cls(**{name: getattr(config, name) for name in fields})


def make(root: Path) -> None:
    peer, x = source(), inputs(D)
    cases = {
        "relu": (PEER, {"class_token": None}),
        "gated": (GATED, {"class_token": None, "gated_sae": True}),
        "hugofry": (HUGOFRY, {"class_token": True}),
    }
    for case, (said, settings) in cases.items():
        folder = fresh(root, case)
        model = drawn(peer, **settings)
        path = folder / "out.pt"
        model.save_model(str(path))
        theirs = opened(peer, path)
        if case == "hugofry":
            torch.save({"config": renamed(model.cfg), "state_dict": model.state_dict()}, path)
        with torch.no_grad():
            reconstruction, codes, _ = theirs(x)
        family = "gated" if case == "gated" else "relu"
        record(folder, x, codes, reconstruction, peer=said, dialect="patchsae", family=family)
