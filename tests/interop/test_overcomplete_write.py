"""Dictionaries of ours written for overcomplete: what opens again as it was, and what cannot be written."""

import json
import shutil

import pytest
import torch

from tests.interop.test_overcomplete import FIXTURES, UNKNOWN, D, N, draw
from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary


def written(dictionary, folder):
    DIALECTS.get("overcomplete")().write(dictionary, folder)
    return load_dictionary(folder)


def made(family, **settings):
    """A dictionary with other weights than it starts with and no decoder bias."""
    dictionary = DICTIONARIES.get(family)(D, N, **settings)
    with torch.no_grad():
        for seed, (name, values) in enumerate(dictionary.named_parameters()):
            if name not in ("b_dec", "W_dec", "mixture", "log_scale", "threshold"):
                values.add_(0.2 * draw(*values.shape, seed=seed))
        if family == "archetypal":
            dictionary.log_scale.fill_(0.3)
            dictionary.constrain()
    dictionary.metadata = {"model": "open_clip:ViT-B-32/openai", "site": "vision.10.resid_post"}
    return dictionary


@pytest.mark.parametrize(
    "family, settings",
    [("relu", {}), ("topk", {"k": 3}), ("batch_topk", {"k": 3}), ("jumprelu", {"bandwidth": 0.03}),
     ("archetypal", {"k": 3, "candidates": 7, "delta": 0.2}), ("matching_pursuit", {"k": 3})],
)  # fmt: skip
def test_what_is_written_opens_again_with_nothing_asked(tmp_path, family, settings):
    dictionary, x = made(family, **settings), draw(200, D, seed=9)
    if hasattr(dictionary, "threshold"):
        with torch.no_grad():
            dictionary.threshold.copy_(torch.rand(N) if family == "jumprelu" else torch.tensor(0.3))
            dictionary.threshold[:2] *= 0 if family == "jumprelu" else 1
    again = written(dictionary, tmp_path)
    assert (again.family, again.settings) == (family, dictionary.settings)
    assert {name: again.metadata[name] for name in ("model", "site")} == dictionary.metadata
    assert torch.equal(again.encode(x) != 0, dictionary.encode(x) != 0)
    assert again.encode(x).allclose(dictionary.encode(x), atol=1e-6) and again(x).allclose(dictionary(x), atol=2e-6)


def test_a_threshold_comes_back_bit_for_bit(tmp_path):
    batch = made("batch_topk", k=3)
    batch.threshold.fill_(0.37)
    assert torch.equal(written(batch, tmp_path).threshold, batch.threshold)


def test_atoms_of_any_norm_are_written_as_they_are(tmp_path):
    topk = made("topk", k=3)
    with torch.no_grad():
        topk.W_dec.mul_(torch.linspace(0.5, 2, N)[:, None])
    again = written(topk, tmp_path)
    assert torch.equal(again.W_dec, topk.W_dec)
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["dictionary_params"] == {
        "normalization": "identity"
    }


def test_an_input_scale_is_folded_and_the_dictionary_left_alone(tmp_path):
    topk, x = made("topk", k=3), draw(50, D, seed=9)
    topk.transform = InputTransform(D, "sqrt_d")
    topk.transform.scale.fill_(3.0)
    before = topk.b_enc.clone()
    assert written(topk, tmp_path)(x).allclose(topk(x), atol=1e-5)
    assert torch.equal(topk.b_enc, before) and topk.transform.kind == "sqrt_d"


def test_what_cannot_be_expressed_is_not_written(tmp_path):
    biased = made("topk", k=3)
    biased.b_dec.data += 1
    centred, unit = made("topk", k=3), made("topk", k=3)
    centred.transform, unit.transform = InputTransform(D, "centre"), InputTransform(D, "unit")
    centred.transform.mean.fill_(1.0)
    uneven = made("batch_topk", k=3)
    uneven.threshold[0] = 0.5
    wide = made("archetypal", k=3, candidates=7, delta=0.2)
    wide.delta = 0.1
    half = made("matching_pursuit", k=3)
    half.W_dec.data.abs_()
    long = made("matching_pursuit", k=3)
    long.W_dec.data *= 1.01
    for dictionary, match in (
        (biased, "decoder bias of norm 2.45.*x - b_dec"),
        (centred, "decoder bias of norm 2.45"),
        (unit, "cannot be folded"),
        (uneven, "between 0 and 0.5; a BatchTopKSAE has one"),
        (wide, "relaxations are up to 0.2"),
        (half, "negative correlations"),
        (long, "not of unit norm"),
        (made("matching_pursuit", k=3, nonnegative=False), "largest signed correlation"),
        (made("matching_pursuit", k=3, orthogonal=True), "largest signed correlation"),
        (made("abs_topk", k=3), "no model like 'abs_topk'"),
        (made("gated"), "no model like 'gated'"),
    ):
        with pytest.raises(DialectError, match=match):
            DIALECTS.get("overcomplete")().write(dictionary, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, arguments, match",
    [
        ({}, {"nb_concepts": 7}, "says 7 concepts and has a dictionary of 20"),
        ({}, {"input_shape": [4, D]}, "says .4, 6. dimensions and has a dictionary of 6"),
        ({"k": 4}, {}, "says k=3 in one place and 4 in another"),
        ({}, {"top_k": 21}, "says k=21: expected a finite whole number, at least 1 and at most 20"),
        ({}, {"top_k": True}, "says k=True: expected"),
        ({}, {"top_k": "a" * 9999}, "says k=aaaa.{0,200}$"),
        ({}, {"dictionary_params": [1]}, r"dictionary_params=\[1\] in its config.json"),
        ({}, {"dictionary_params": {"normalization": 5}}, "says normalization=5: expected one of l2"),
        ({}, {"dictionary_params": {"scale": 5}}, "other_fields=.*dictionary_params.scale=5"),
        ({}, {"pre_bias": True}, "other_fields=.*arguments.pre_bias=True"),
        ({"input_scale": 2}, {}, "other_fields=.*input_scale=2"),
        ({"arguments": 3}, {}, "arguments=3 in its config.json"),
        ({"class": "RATopKSAE"}, {}, "config.json says RATopKSAE, whose dictionary layer has other tensors"),
        ({"class": "JumpSAE"}, {}, "no tensor 'thresholds'"),
        ({"class": "b" * 9999}, {}, "is a bbb.{0,200}$"),
        ({"class": "BatchTopKSAE", "running_threshold": "c" * 9999}, {}, "says threshold=ccc.{0,200}$"),
    ],
)
def test_an_edited_configuration_that_contradicts_is_refused(tmp_path, change, arguments, match):
    written(made("topk", k=3), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"] |= arguments
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    answers = {"k": 3} if change.get("class") == "BatchTopKSAE" else {}
    with pytest.raises(DialectError, match=match):
        load_dictionary(tmp_path, **answers)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"class": "SAE"}, "class=TopKSAE in one place and SAE in another"),
        ({"arguments": {"top_k": 5}}, "top_k=4 in one place and 5 in another"),
        (
            {"arguments": {"dictionary_params": {"normalization": "l1"}}},
            "normalization=l2 in one place and l1 in another",
        ),
    ],
)
def test_a_configuration_beside_a_pickle_must_agree_with_it(tmp_path, change, match):
    shutil.copy(FIXTURES / "overcomplete/topk-pickle/model.pt", tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"library": "overcomplete"} | change))
    with pytest.raises(DialectError, match=match):
        load_dictionary(tmp_path, **UNKNOWN)
