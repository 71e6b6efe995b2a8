"""Against saev itself, both ways; see tests/interop/peers/saev.py for what VLSAE_PEER_SAEV has to hold."""

import os

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
    nn = generation("schema5")
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
    nn = generation("schema5")
    for seed, threshold in enumerate((0.0, 0.5, 1.0)):
        sae = DICTIONARIES.get(family)(D, N, seed=seed, **FAMILIES[family])
        fill(sae, seed)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(threshold)
        Saev().write(sae, tmp_path)
        agree(sae, nn.load(tmp_path / "sae.pt"), inputs(D, 64, seed))
