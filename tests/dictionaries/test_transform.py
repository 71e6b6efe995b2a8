"""Input transforms: what they promise about the data, that they are undone, saved, and folded exactly."""

import pytest
import torch

from vlsae.dictionaries import load_dictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import KINDS, InputTransform

X = torch.randn(500, 9, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 4, 9) + 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_transform_is_undone(kind):
    transform = InputTransform.fit(X, kind)
    assert torch.allclose(transform.inverse(transform(X), like=X), X, atol=1e-4)


def test_what_each_transform_promises():
    def seen(kind):
        return InputTransform.fit(X, kind)(X)

    assert torch.equal(seen("none"), X)
    assert seen("centre").mean(0).abs().max() < 1e-5
    assert seen("sqrt_d").norm(dim=1).mean() == pytest.approx(3.0, rel=1e-5)
    assert seen("centre_sqrt_d").norm(dim=1).mean() == pytest.approx(3.0, rel=1e-5)
    assert seen("centre_sqrt_d").mean(0).abs().max() < 1e-5
    assert (seen("standardise").std(0, correction=0) - 1).abs().max() < 1e-4
    assert (seen("unit").norm(dim=1) - 1).abs().max() < 1e-5
    assert torch.allclose(seen("layer_norm"), torch.nn.functional.layer_norm(X, (9,), eps=1e-10), atol=1e-5)
    deviations = ((X - X.mean(1, keepdim=True)).square().sum(1, keepdim=True) / 8).sqrt()  # d - 1 = 8
    assert torch.allclose(seen("layer_norm_unbiased") * (deviations + 1e-5), X - X.mean(1, keepdim=True), atol=1e-5)
    with pytest.raises(ValueError, match="input_transform='log' is unknown; use one of none, centre"):
        InputTransform(9, "log")


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_is_saved_with_the_dictionary(kind, tmp_path):
    """Losing it silently is the field's commonest loading error."""
    sae = TopKDictionary(9, 20, k=4)
    sae.transform = InputTransform.fit(X, kind)
    again = load_dictionary(sae.save(tmp_path))
    assert again.transform.kind == kind
    assert torch.equal(again.encode(X), sae.encode(X))
    assert torch.equal(again(X), sae(X))


@pytest.mark.parametrize("kind", ["centre", "sqrt_d", "centre_sqrt_d"])
def test_folding_keeps_the_reconstruction(kind):
    sae = ReLUDictionary(9, 20)
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(1))
        sae.b_enc.normal_(generator=torch.Generator().manual_seed(2))
    sae.transform = InputTransform.fit(X, kind)
    before, codes, scale = sae(X), sae.encode(X), sae.transform.scale[0]
    sae.fold_transform()
    assert sae.transform.kind == "none"
    assert torch.allclose(sae(X), before, atol=1e-4)
    assert torch.allclose(sae.encode(X), codes / scale, atol=1e-4)


@pytest.mark.parametrize("kind", ["standardise", "unit", "layer_norm", "layer_norm_unbiased"])
def test_what_cannot_be_folded_says_so(kind):
    sae = TopKDictionary(9, 20, k=4)
    sae.transform = InputTransform.fit(X, kind)
    with pytest.raises(ValueError, match="cannot be folded into weights"):
        sae.fold_transform()


def test_the_unbiased_layer_norm_is_undone_without_its_epsilon():
    """As SAELens and ViT-Prisma do: there and back shrinks a token's deviations by std / (std + 1e-5)."""
    small = 1e-4 * torch.randn(5, 9, generator=torch.Generator().manual_seed(0))  # where 1e-5 counts
    transform = InputTransform(9, "layer_norm_unbiased")
    centred, std = small - small.mean(1, keepdim=True), small.std(1, keepdim=True)
    assert torch.allclose(
        transform.inverse(transform(small), small),
        small.mean(1, keepdim=True) + centred * std / (std + 1e-5),
        atol=1e-9,
    )
    assert transform(torch.ones(1, 9)).abs().max() == 0  # a constant token has no deviation to divide by


def test_codes_of_a_token_transform_need_the_token():
    sae = TopKDictionary(9, 20, k=4)
    sae.transform = InputTransform(9, "unit")
    assert torch.equal(sae.decode(sae.encode(X), like=X), sae(X))
    with pytest.raises(ValueError, match="give decode"):
        sae.decode(sae.encode(X))


def test_scalar_takes_one_mean_and_one_deviation():
    x = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    seen = InputTransform.fit(x, "scalar")(x)
    assert torch.allclose(seen, (x - 4) / (x.std() + 1e-5), atol=1e-6)
