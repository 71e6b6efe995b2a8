"""Checkpoints as the training of Universal SAEs writes them, made of overcomplete's modules, of which its own are a copy."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from tests.interop.make_fixtures import fresh, inputs, record
from tests.interop.peers.overcomplete import D, K, N, library, seeded

MEAN, STD = -0.0305, 2.2315


def make(root: Path) -> None:
    sae = library()
    arguments = {"top_k": K, "encoder_module": "mlp_bn_1"}
    for name, has_multiplier, scaled in (("published", False, True), ("raw", True, False)):
        model = seeded(sae.TopKSAE, **arguments)
        with torch.no_grad():
            gain = model.encoder.final_block[1].weight
            gain.copy_(0.5 + torch.rand(N, generator=torch.Generator().manual_seed(5)))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        again = sae.TopKSAE(D, N, **arguments)
        again.load_state_dict(state)
        again.eval()
        if not has_multiplier:
            del state["dictionary.multiplier"]  # the copy is older than it
        x, folder = inputs(D), fresh(root, name)
        optimiser = {"state": {}, "param_groups": [{"lr": 3e-4, "params": [0, 1]}]}
        torch.save(
            {"epoch": 29, "model_state_dict": state, "optimizer_state_dict": optimiser, "learning_rate": 1e-6},
            folder / f"uni_{name}_checkpoint_29.pth",
        )
        with torch.no_grad():
            _, codes, found = again((x - MEAN) / (STD + 1e-5) if scaled else x)
        scale = {"mean": MEAN, "std": STD} if scaled else {"mean": "none", "std": "none"}
        record(folder, x, codes, found * (STD + 1e-5) + MEAN if scaled else found, dialect="usae",
               peer=f"structure of YorkUCVIL/UniversalSAE at 2c88dd0, by modules of overcomplete {version('overcomplete')}",
               family="batch_norm_topk", answers={"k": K, **scale})  # fmt: skip
