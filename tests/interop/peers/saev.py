"""saev of five generations, which cannot be installed beside each other (the newest wants Python 3.12 and a cluster's tools).

`VLSAE_PEER_SAEV` names a folder with one checkout of `OSU-NLP-Group/saev` each in `none` (the package saev 0.1.0),
`schema1_subtracts`, `schema1`, `schema2` and `schema5`: those whose `saev/nn/modeling.py` write these headers. orjson, tyro,
einops, jaxtyping and beartype must be importable.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.interop.make_fixtures import fresh, inputs, record

D, FACTOR = 8, 4
N = D * FACTOR
HEAD = "transcribed for inference: OSU-NLP-Group/saev, src/saev/nn/modeling.py of schema 5"


def generation(name: str) -> ModuleType:
    """The module with `SparseAutoencoder`, `dump` and `load` of one checkout."""
    for known in [known for known in sys.modules if known.split(".")[0] == "saev"]:
        del sys.modules[known]
    sys.path.insert(0, str(Path(os.environ["VLSAE_PEER_SAEV"]) / name))
    try:
        return importlib.import_module("saev.nn" if name == "none" else "saev.nn.modeling")
    finally:
        del sys.path[0]


def fill(sae: torch.nn.Module, seed: int) -> None:
    """Weights without symmetry, atoms that are not unit, and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"W_enc": 0.5, "W_dec": 0.4, "b_enc": 0.6, "b_dec": 0.8}
    with torch.no_grad():
        for key, size in draw.items():
            weight = getattr(sae, key)
            weight.copy_(size * torch.randn(weight.shape, generator=generator) + (0.5 if key == "b_dec" else 0))


def run(sae: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction, whatever this generation's forward returns."""
    sae.eval()
    with torch.no_grad():
        out = sae(x)
    return (out.f_x, out.x_hats[:, -1]) if hasattr(out, "f_x") else (out[1], out[0])


def first(root: Path) -> None:
    """PyPI's saev 0.1.0, once on raw activations and once as its training does it, centred and scaled."""
    nn = generation("none")
    cfg = importlib.import_module("saev.config").SparseAutoencoder(d_vit=D, exp_factor=FACTOR)
    x = inputs(D)
    for name, mean, scale in (("no_schema", torch.zeros(D), 1.0), ("no_schema_scaled", torch.linspace(-1, 2, D), 2.5)):
        folder = fresh(root, name)
        sae = nn.SparseAutoencoder(cfg)
        fill(sae, 1)
        nn.dump(str(folder / "sae.pt"), sae)
        codes, xhat = run(nn.load(str(folder / "sae.pt")), (x - mean) / scale)
        told = {"mean": mean.tolist() if mean.any() else 0, "scale": scale}
        record(folder, x, codes, xhat * scale + mean, peer="saev 0.1.0", dialect="saev", family="relu", answers=told)


def case(
    root: Path, name: str, checkout: str, cfg: Any, *, family: str, seed: int, threshold: float = 0.0,
    answers: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """One file of a later generation; `cfg` makes its configuration from the module."""
    nn, folder, x = generation(checkout), fresh(root, name), inputs(D)
    sae = nn.SparseAutoencoder(cfg(nn))
    fill(sae, seed)
    if threshold:
        sae.activation.threshold.fill_(threshold)
    nn.dump(str(folder / "sae.pt"), sae)
    codes, xhat = run(nn.load(str(folder / "sae.pt")), x)
    peer = f"OSU-NLP-Group/saev, src/saev/nn/modeling.py of {checkout}"
    record(folder, x, codes, xhat, peer=peer, dialect="saev", family=family, answers=answers)


def rewritten(root: Path, name: str, like: str, schema: int, cfg: dict, *, family: str) -> None:
    """The header of a generation whose checkout is not to be had, before weights of schema 5; read by schema 5's loader."""
    folder, x = fresh(root, name), inputs(D)
    with open(root / like / "sae.pt", "rb") as file:
        file.readline()
        weights = file.read()
    header = {"schema": schema, "cfg": cfg, "commit": "unknown", "lib": "0.1.0"}
    (folder / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + weights)
    codes, xhat = run(generation("schema5").load(str(folder / "sae.pt")), x)
    record(folder, x, codes, xhat, peer=f"{HEAD}; header by its loader's description", dialect="saev", family=family)


def make(root: Path) -> None:
    first(root)
    raw = {"mean": 0, "scale": 1}
    case(root, "schema1_subtracts", "schema1_subtracts", lambda nn: nn.Relu(d_vit=D, exp_factor=FACTOR),
         family="relu", seed=2, answers=raw | {"subtract_b_dec": True})  # fmt: skip
    case(root, "schema1_topk", "schema1", lambda nn: nn.TopK(d_vit=D, exp_factor=FACTOR, top_k=20),
         family="unrectified_topk", seed=3, answers=raw | {"subtract_b_dec": False})  # fmt: skip
    case(root, "schema2_batch_topk", "schema2", family="unrectified_topk", seed=4, answers={"family": "unrectified_topk"},
         cfg=lambda nn: nn.SparseAutoencoderConfig(d_vit=D, exp_factor=FACTOR, activation=nn.BatchTopK(top_k=6)))  # fmt: skip
    newest = {
        "relu": ("relu", lambda nn: nn.Relu(), 0.0),
        "topk": ("unrectified_topk", lambda nn: nn.TopK(top_k=5), 0.0),
        "topk_negative": ("unrectified_topk", lambda nn: nn.TopK(top_k=24), 0.0),
        "batch_topk": ("batch_topk", lambda nn: nn.BatchTopK(top_k=5), 0.9),
        "batch_topk_never_set": ("batch_topk", lambda nn: nn.BatchTopK(top_k=5), 0.0),
    }
    for seed, (name, (family, activation, threshold)) in enumerate(newest.items(), 5):
        case(root, f"schema5_{name}", "schema5", family=family, seed=seed, threshold=threshold,
             cfg=lambda nn, a=activation: nn.SparseAutoencoderConfig(d_model=D, d_sae=N, activation=a(nn)))  # fmt: skip
    batch = {"cls": "BatchTopK", "params": {"top_k": 5, "momentum": 0.1}}
    rewritten(root, "schema4_batch_topk", "schema5_batch_topk", 4, {"d_model": D, "d_sae": N, "activation": batch},
              family="batch_topk")  # fmt: skip
    topk = {"cls": "TopK", "params": {"top_k": 5}}
    rewritten(root, "schema3_topk", "schema5_topk", 3, {"d_model": D, "exp_factor": FACTOR, "activation": topk},
              family="unrectified_topk")  # fmt: skip
