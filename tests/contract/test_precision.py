"""What every backbone must do when its vision blocks compute in bfloat16."""

import pytest
import torch

from tests.backbones.models import BUILDERS
from vlsae.backbones import load_model, set_precision
from vlsae.world import scenes

# A bfloat16 is at most 2^-9 off. Every block rounds about ten times (norms, weights, products, two sums); if all of that
# added up in quadrature, 3 blocks would end sqrt(30) 2^-9 = 1.1 % off, the tiny model's 6 blocks 1.5 %.
BOUND = 0.02


@pytest.fixture(scope="module", params=BUILDERS)
def models(request):
    return BUILDERS[request.param](), set_precision(BUILDERS[request.param](), "bfloat16")


@pytest.fixture(scope="module")
def drawn():
    return scenes(4, seed=3, resolution=64)


def _error(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_tokens_and_embeddings_are_close_to_float32s(models, drawn):
    exact, rounded = models
    for site in ("vision.0.resid_post", "vision.1.mlp_out", "vision.-1.resid_post", "vision.pooled"):
        found = rounded.tokens(drawn, site)
        assert found.dtype == torch.float32
        assert 0 < _error(found, exact.tokens(drawn, site)) < BOUND, site
    assert torch.equal(rounded.tokens(drawn, "vision.0.resid_pre"), exact.tokens(drawn, "vision.0.resid_pre"))


def test_names_of_weights_and_texts_stay(models, drawn):
    exact, rounded = models
    assert (exact.precision, rounded.precision) == ("float32", "bfloat16")
    assert rounded.weight_hash == exact.weight_hash
    if exact.has_text:
        assert torch.equal(rounded.encode_text(["a red cat"]), exact.encode_text(["a red cat"]))
        names = ["cat", "dog", "bus"]
        assert _error(rounded.zero_shot(drawn, names), exact.zero_shot(drawn, names)) < 10 * BOUND  # scale <= 100
    last = exact.tokens(drawn, "vision.-1.resid_post")[:, 0]
    with torch.no_grad():
        assert torch.equal(rounded.readout(last), exact.readout(last))


def test_identity_edits_are_bit_exact(models, drawn):
    _, rounded = models
    pixels = rounded.pixels(drawn)
    with torch.no_grad():
        before = rounded.forward_image(pixels)
        assert before.dtype == torch.float32
        for site in [s for s in rounded.sites() if s.startswith("vision")]:
            for same in (lambda x: x, lambda x: x.clone(), lambda x: x.float()):  # a float32 edit is rounded back
                with rounded.edit(site, same):
                    assert torch.equal(rounded.forward_image(pixels), before), site
            with rounded.edit(site, torch.zeros_like):
                assert not torch.equal(rounded.forward_image(pixels), before), site


def test_capture_and_early_exit(models, drawn):
    _, rounded = models
    pixels = rounded.pixels(drawn)
    with torch.no_grad(), rounded.capture("vision.1.resid_post", "vision.-1.resid_post") as found:
        rounded.forward_image(pixels)
    for site, tokens in found.items():
        assert tokens.dtype == torch.bfloat16
        assert torch.equal(rounded.tokens(pixels, site), tokens.float())


def test_wrong_precisions():
    model = load_model("tiny", precision="bfloat16")
    assert load_model(model) is model
    assert load_model(model, precision="bfloat16") is model
    with pytest.raises(ValueError, match="rounded to bfloat16; load the model again"):
        set_precision(model, "float32")
    with pytest.raises(ValueError, match="precision='float16' is unknown; use one of float32, bfloat16"):
        load_model("tiny", precision="float16")
    with pytest.raises(ValueError, match="a loaded model of float32 was given"):
        load_model(load_model("tiny"), precision="bfloat16")
