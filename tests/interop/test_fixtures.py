"""Checkpoints that the peers themselves wrote, held to the codes that they themselves computed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from vlsae.interop.dialect import DIALECTS
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

CASES = sorted(path.parent for path in (Path(__file__).parent / "fixtures").rglob("case.json"))


@pytest.fixture(params=CASES, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def case(request):
    return request.param, json.loads((request.param / "case.json").read_text())


def test_codes_and_reconstructions_are_the_peers_own(case):
    """1e-6 of the largest value: both sides sum the same float32 products, at most in another order."""
    folder, facts = case
    expected = load((folder / "expected.st").read_bytes())
    dictionary = load_dictionary(folder / facts["opens"], **{"model": "unknown", "site": "unknown"} | facts["answers"])
    assert dictionary.family == facts["family"]
    with torch.no_grad():
        z, xhat = dictionary.encode(expected["x"]), dictionary(expected["x"])
        sparse = dictionary.encode_sparse(expected["x"]).dense()
    assert torch.equal(z != 0, expected["codes"] != 0)
    assert (z != 0).any()  # or the line above says nothing
    for ours, theirs in ((z, expected["codes"]), (sparse, expected["codes"]), (xhat, expected["reconstruction"])):
        assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, float(theirs.abs().max()))


def test_exactly_one_dialect_recognises_it(case):
    folder, facts = case
    source = Source(folder / facts["opens"])
    assert [name for name in DIALECTS if DIALECTS.get(name)().sniff(source)] == [facts["dialect"]]


def test_it_survives_a_conversion_to_our_own_format(case, tmp_path):
    """Everything that changes codes is in our folder: equal bit for bit."""
    folder, facts = case
    x = load((folder / "expected.st").read_bytes())["x"]
    dictionary = load_dictionary(folder / facts["opens"], **{"model": "unknown", "site": "unknown"} | facts["answers"])
    again = load_dictionary(dictionary.save(tmp_path))
    assert torch.equal(again.encode(x), dictionary.encode(x)) and torch.equal(again(x), dictionary(x))
    assert again.metadata == dictionary.metadata
