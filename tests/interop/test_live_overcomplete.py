"""The library overcomplete itself, both ways."""

import importlib.util
import json

import pytest
import torch

from tests.interop.make_fixtures import inputs
from tests.interop.peers.overcomplete import D, K, N, library, trained
from tests.interop.test_overcomplete import UNKNOWN
from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary

pytestmark = pytest.mark.peers


@pytest.fixture
def sae():
    if importlib.util.find_spec("overcomplete") is None:
        pytest.skip("overcomplete is not installed")
    return library()


def made(family, **settings):
    """A dictionary of ours with random weights, atoms of several norms, and thresholds among the pre-activations."""
    torch.manual_seed(7)
    dictionary = DICTIONARIES.get(family)(D, N, **settings)
    with torch.no_grad():
        for name, values in dictionary.named_parameters():
            if name in ("W_enc", "b_enc", "mixture", "relaxation"):
                values.add_(0.3 * torch.randn(values.shape))
        if family == "archetypal":
            dictionary.log_scale.fill_(0.4)
            dictionary.constrain()
        elif family != "matching_pursuit":
            dictionary.W_dec.mul_(0.5 + torch.rand(N, 1))
        if family == "jumprelu":
            dictionary.threshold.copy_(2 * torch.rand(N))
        if family == "batch_topk":
            dictionary.threshold.fill_(1.1)
    return dictionary


def opened_there(sae, folder):
    """As `how_to_open` in the configuration says."""
    config = json.loads((folder / "config.json").read_text())
    state, arguments = torch.load(folder / "sae.pt"), config["arguments"]
    if config["class"] == "RATopKSAE":
        arguments["points"] = state["dictionary.C"]
    model = getattr(sae, config["class"])(**arguments)
    model.load_state_dict(state)
    if "running_threshold" in config:
        model.running_threshold = torch.tensor(config["running_threshold"])
    model.eval()
    return model


OURS = [("relu", {}), ("topk", {"k": K}), ("batch_topk", {"k": K}), ("jumprelu", {}),
        ("archetypal", {"k": K, "candidates": 10, "delta": 0.3}), ("archetypal", {"k": K, "candidates": 10, "delta": 0.0}),
        ("matching_pursuit", {"k": K})]  # fmt: skip


@pytest.mark.parametrize("family, settings", OURS)
def test_they_read_what_we_write(sae, tmp_path, family, settings):
    dictionary, x = made(family, **settings), inputs(D, n=500)
    DIALECTS.get("overcomplete")().write(dictionary, tmp_path)
    with torch.no_grad():
        _, codes, reconstruction = opened_there(sae, tmp_path)(x)
        z, xhat = dictionary.encode(x), dictionary(x)
    assert torch.equal(z != 0, codes != 0) and (z != 0).any() and (z == 0).any()
    for ours, theirs in ((z, codes), (xhat, reconstruction)):
        assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, float(theirs.abs().max()))


def test_they_read_a_dictionary_whose_scale_was_folded(sae, tmp_path):
    dictionary, x = made("topk", k=K), inputs(D, n=500)
    dictionary.transform = InputTransform(D, "sqrt_d")
    dictionary.transform.scale.fill_(0.7)
    DIALECTS.get("overcomplete")().write(dictionary, tmp_path)
    with torch.no_grad():
        assert opened_there(sae, tmp_path)(x)[2].allclose(dictionary(x), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind, arguments, answers", [
    ("SAE", {}, {"family": "relu"}), ("TopKSAE", {"top_k": K}, {"family": "topk", "k": K}),
    ("TopKSAE", {"top_k": K, "encoder_module": "mlp_bn_1"}, {"family": "topk", "k": K}),
    ("JumpSAE", {}, {}), ("MpSAE", {"k": K}, {"family": "matching_pursuit", "k": K}),
    ("RATopKSAE", {"top_k": K, "delta": 0.7}, {"family": "topk", "k": K, "delta": 0.7}),
    ("RAJumpSAE", {"delta": 0.7}, {"delta": 0.7}),
])  # fmt: skip
def test_we_read_what_they_write(sae, tmp_path, kind, arguments, answers, seed):
    torch.manual_seed(seed)
    if kind.startswith("RA"):
        arguments = {**arguments, "points": torch.randn(10, D)}
    model, x = trained(getattr(sae, kind)(D, N, **arguments)), inputs(D, n=500, seed=seed)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "model.pt")
    model.eval()
    with torch.no_grad():
        _, codes, reconstruction = model(x)
        for name, told in (("state.pt", answers), ("model.pt", {})):
            dictionary = load_dictionary(tmp_path / name, **UNKNOWN, **told)
            assert torch.equal(dictionary.encode(x) != 0, codes != 0)
            for ours, theirs in ((dictionary.encode(x), codes), (dictionary(x), reconstruction)):
                assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, float(theirs.abs().max()))


def test_where_pursuit_is_refused_theirs_has_negative_codes(sae, tmp_path):
    """Atoms of one orthant: on the opposite one every correlation is negative."""
    model = sae.MpSAE(D, N, k=2)
    model.dictionary._weights.data.abs_()
    torch.save(model, tmp_path / "model.pt")
    model.eval()
    assert model.encode(-torch.ones(1, D))[1].min() < 0
    with pytest.raises(DialectError, match="negative correlations"):
        load_dictionary(tmp_path / "model.pt", **UNKNOWN)


def test_the_orthogonal_pursuit_that_is_refused_differs_from_ours(sae, tmp_path):
    """After ten steps of gradient descent its codes are off by far more than rounding."""
    torch.manual_seed(0)
    model, x = sae.OMPSAE(D, N, k=3), inputs(D, n=100)
    model.eval()
    ours = DICTIONARIES.get("matching_pursuit")(D, N, k=3, orthogonal=True)
    ours.W_dec.data.copy_(model.get_dictionary())
    assert (ours.encode(x) - model.encode(x)[1]).abs().max() > 1e-2
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(DialectError, match="from k=2 on, and it has k=3"):
        load_dictionary(tmp_path / "model.pt", **UNKNOWN)
