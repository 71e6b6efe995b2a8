"""Against saev itself, both ways; see tests/interop/peers/saev.py for what VLSAE_PEER_SAEV has to hold."""

import importlib
import os
from pathlib import Path

import pytest
import torch

from tests.interop.make_fixtures import inputs
from tests.interop.peers.saev import D, N, fill, generation, run
from vlsae.dictionaries import DICTIONARIES
from vlsae.interop.dialects.saev import Saev
from vlsae.interop.load import load_dictionary

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif("VLSAE_PEER_SAEV" not in os.environ, reason="VLSAE_PEER_SAEV names no checkouts of saev"),
]
WHO = {"model": "unknown", "site": "unknown"}
ACTIVATIONS = {"Relu": {}, "TopK": {"top_k": 20}, "BatchTopK": {"top_k": 4}}
FAMILIES = {"relu": {}, "unrectified_topk": {"k": 20}, "batch_topk": {"k": 4}, "nested_dictionary": {"k": 4}}


def checkout(name):
    """The module of one generation, where the folder holds it."""
    if not (Path(os.environ["VLSAE_PEER_SAEV"]) / name).is_dir():
        pytest.skip(f"VLSAE_PEER_SAEV has no {name}")
    return generation(name)


def agree(sae, theirs, x):
    """b_dec is folded into a bias and rounded once more: 2e-6 of the largest value."""
    codes, xhat = run(theirs, x)
    with torch.no_grad():
        z = sae.encode(x)
        assert torch.equal(z != 0, codes != 0) and (z != 0).any()
        assert (z - codes).abs().max() <= 2e-6 * codes.abs().max()
        assert (sae(x) - xhat).abs().max() <= 2e-6 * xhat.abs().max()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_they_write_we_read(tmp_path, name):
    nn = checkout("schema5")
    for seed in range(5):
        cfg = nn.SparseAutoencoderConfig(d_model=D, d_sae=N, activation=getattr(nn, name)(**ACTIVATIONS[name]))
        theirs = nn.SparseAutoencoder(cfg)
        fill(theirs, seed)
        if name == "BatchTopK":
            theirs.activation.threshold.fill_(0.3)
        nn.dump(tmp_path / "sae.pt", theirs)
        agree(load_dictionary(tmp_path, **WHO), theirs, inputs(D, 64, seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_we_write_they_read(tmp_path, family):
    """`load` of the newest generation; a threshold of 0 is one of theirs that was never set."""
    nn = checkout("schema5")
    for seed, threshold in enumerate((0.0, 0.5, 1.0)):
        sae = DICTIONARIES.get(family)(D, N, seed=seed, **FAMILIES[family])
        fill(sae, seed)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(threshold)
        Saev().write(sae, tmp_path)
        agree(sae, nn.load(tmp_path / "sae.pt"), inputs(D, 64, seed))


@pytest.mark.parametrize("unit", [False, True])
def test_the_first_package_writes_we_read(tmp_path, unit):
    """saev 0.1.0 takes b_dec off; its training reads centred and scaled activations, which an answer has to say."""
    nn = checkout("none")
    config = importlib.import_module("saev.config")
    for seed in range(5):
        theirs = nn.SparseAutoencoder(
            config.SparseAutoencoder(d_vit=D, exp_factor=N // D, normalize_w_dec=unit, seed=seed)
        )
        fill(theirs, seed)
        theirs.normalize_w_dec()
        nn.dump(str(tmp_path / "sae.pt"), theirs)
        mean, scale = torch.linspace(-1, 2, D), 1.5 + seed
        x = inputs(D, 64, seed)
        agree(load_dictionary(tmp_path, **WHO, mean=0, scale=1), nn.load(str(tmp_path / "sae.pt")), x)
        codes, xhat = run(theirs, (x - mean) / scale)
        sae = load_dictionary(tmp_path, **WHO, mean=mean.tolist(), scale=scale)
        with torch.no_grad():
            assert (sae.encode(x) - codes).abs().max() <= 2e-6 * codes.abs().max()
            assert (sae(x) - (xhat * scale + mean)).abs().max() <= 2e-6 * xhat.abs().max() * scale
