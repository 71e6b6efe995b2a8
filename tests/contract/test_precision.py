"""What every backbone must do when its vision blocks compute in bfloat16, or in float32 by oneDNN."""

import pytest
import torch

from tests.backbones.models import BUILDERS
from vlsae import onednn
from vlsae.backbones import load_model, set_precision
from vlsae.world import scenes

# A bfloat16 is at most 2^-9 off. Every block rounds about ten times (norms, weights, products, two sums); if all of that
# added up in quadrature, 3 blocks would end sqrt(30) 2^-9 = 1.1 % off, the tiny model's 6 blocks 1.5 %.
# Another order of sums changes float32 by some 2^-24 an operation, which the same count makes 1e-6.
BOUNDS = {"bfloat16": 0.02, "float32_onednn": 2e-6}
PLACES = ("vision.0.resid_post", "vision.1.mlp_out", "vision.-1.resid_post", "vision.pooled")


@pytest.fixture(scope="module", params=[(kind, precision) for precision in BOUNDS for kind in BUILDERS], ids=" ".join)
def models(request):
    kind, precision = request.param
    if precision == "float32_onednn" and not onednn.is_available():
        pytest.skip("this torch has no oneDNN")
    return BUILDERS[kind](), set_precision(BUILDERS[kind](), precision)


@pytest.fixture(scope="module")
def drawn():
    return scenes(4, seed=3, resolution=64)


def _error(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_tokens_and_embeddings_are_close_to_float32s(models, drawn):
    exact, rounded = models
    for site in PLACES:
        found = rounded.tokens(drawn, site)
        assert found.dtype == torch.float32
        assert _error(found, exact.tokens(drawn, site)) < BOUNDS[rounded.precision], site
    if rounded.precision == "bfloat16":
        assert not torch.equal(found, exact.tokens(drawn, site))
    else:  # 32 products may well be summed in the same order
        assert any("forward" in vars(part) for part in rounded.blocks("vision").modules())
    assert torch.equal(rounded.tokens(drawn, "vision.0.resid_pre"), exact.tokens(drawn, "vision.0.resid_pre"))


def test_names_of_weights_and_texts_stay(models, drawn):
    exact, rounded = models
    assert rounded.weight_hash == exact.weight_hash
    if exact.has_text:
        assert torch.equal(rounded.encode_text(["a red cat"]), exact.encode_text(["a red cat"]))
        names = ["cat", "dog", "bus"]
        assert _error(rounded.zero_shot(drawn, names), exact.zero_shot(drawn, names)) < 10 * BOUNDS[rounded.precision]
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
        assert tokens.dtype == (torch.bfloat16 if rounded.precision == "bfloat16" else torch.float32)
        assert torch.equal(rounded.tokens(pixels, site), tokens.float())


def test_wrong_precisions():
    model = load_model("tiny", precision="bfloat16")
    assert load_model(model) is model
    assert load_model(model, precision="bfloat16") is model
    for other in ("float32", "float32_onednn"):
        with pytest.raises(ValueError, match=f"tiny computes in bfloat16 already; load it again for {other}"):
            set_precision(model, other)
    with pytest.raises(
        ValueError, match="precision='float16' is unknown; use one of float32, float32_onednn, bfloat16"
    ):
        load_model("tiny", precision="float16")
    with pytest.raises(ValueError, match="a loaded model of float32 was given"):
        load_model(load_model("tiny"), precision="bfloat16")
