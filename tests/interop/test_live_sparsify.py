"""Against eai-sparsify itself, both ways."""

import pytest
import torch

from tests.interop.make_fixtures import inputs
from tests.interop.peers.sparsify import D, N, coder, codes_and_reconstruction, library
from vlsae.dictionaries import DICTIONARIES
from vlsae.interop.dialects.sparsify import Sparsify
from vlsae.interop.load import load_dictionary

pytestmark = pytest.mark.peers
pytest.importorskip("sparsify")


def agree(sae, theirs, x):
    """Both sum the same float32 products, at most in another order."""
    codes, xhat = codes_and_reconstruction(theirs, x)
    with torch.no_grad():
        z = sae.encode(x)
        assert torch.equal(z != 0, codes != 0) and (z != 0).any()
        assert (z - codes).abs().max() <= 1e-6 * codes.abs().max()
        assert (sae(x) - xhat).abs().max() <= 1e-6 * xhat.abs().max()


@pytest.mark.parametrize("settings", [{"k": 4}, {"k": 30}, {"k": 7, "transcode": True}])
def test_they_write_we_read(tmp_path, settings):
    for seed in range(5):
        theirs = coder(settings, seed)
        theirs.save_to_disk(tmp_path)
        agree(load_dictionary(tmp_path, model="unknown", site="unknown"), theirs, inputs(D, 64, seed))


@pytest.mark.parametrize(("family", "settings"), [("topk", {"k": 4}), ("transcoder", {"k": 7}), ("relu", {})])
def test_we_write_they_read(tmp_path, family, settings):
    for seed in range(5):
        sae = DICTIONARIES.get(family)(D, N, seed=seed, **settings)
        with torch.no_grad():
            sae.b_enc.normal_(generator=torch.Generator().manual_seed(seed))
            sae.b_dec.fill_(0.7)
        Sparsify().write(sae, tmp_path)
        agree(sae, library()[0].load_from_disk(tmp_path), inputs(D, 64, seed))
