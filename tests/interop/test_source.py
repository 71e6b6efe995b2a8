"""A checkpoint as it lies on disk: what cannot be gone through, held or multiplied is refused when it is asked for."""

import os

import pytest
import torch

from tests.strangers import bounded, saved
from vlsae.interop.dialect import DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source


def test_what_is_nested_without_end_is_given_to_no_dialect(tmp_path):
    loop = {"W_enc": torch.ones(2, 2)}
    loop["a"] = loop
    pairs = ()
    for _ in range(40):
        pairs = (pairs, pairs)
    for name, held in (("loop.pt", loop), ("pairs.pt", {"cfg": pairs})):
        source = Source(saved(tmp_path / name, held))
        for ask in (lambda source=source: source.content, lambda source=source: source.shapes):
            with pytest.raises(DialectError, match="more than 200,000 values or 50 levels; no dictionary does"):
                bounded(ask)
        with pytest.raises(DialectError, match="no dictionary does"):
            load_dictionary(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_tensors_are_finite_in_float32(tmp_path, value):
    source = Source(saved(tmp_path / "a.pt", {"w": torch.tensor([1.0, value], dtype=torch.float64)}))
    with pytest.raises(DialectError, match="w holds NaN, infinite or complex values"):
        source.tensor("w")


def test_tensors_come_as_float32_and_whole_numbers_as_they_are(tmp_path):
    held = {
        "half": torch.ones(2).half(),
        "brain": torch.ones(2).bfloat16(),
        "double": torch.ones(2).double(),
        "whole": torch.arange(3),
    }
    source = Source(saved(tmp_path / "a.pt", held))
    assert [source.tensor(name).dtype for name in held] == [torch.float32] * 3 + [torch.int64]
    with pytest.raises(DialectError, match="has no tensor 'bias'; it has half, brain, double, whole"):
        source.tensor("bias")


@pytest.mark.parametrize(
    "value", [None, "3", True, [3], float("nan"), float("inf"), 1e39, 10**38, torch.ones(2), torch.tensor(float("nan"))]
)
def test_what_is_no_number(tmp_path, value):
    source = Source(saved(tmp_path / "a.pt", {"k": value}))
    with pytest.raises(DialectError, match="k is no number|k holds NaN"):
        source.number("k")


def test_numbers_are_values_or_tensors_of_one(tmp_path):
    held = {"a": 3, "b": torch.tensor(4), "c": torch.tensor([2.5]), "d": -1e30}
    source = Source(saved(tmp_path / "a.pt", held))
    assert [source.number(name) for name in held] == [3, 4, 2.5, -1e30]


def test_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ae.pt")
    with pytest.raises(DialectError, match="0 weight files"):
        Source(tmp_path)
    with pytest.raises(DialectError, match="does not exist"):
        Source(tmp_path / "ae.pt")
    (tmp_path / "ae.pt").unlink()
    saved(tmp_path / "ae.pt", {})
    os.mkfifo(tmp_path / "cfg.json")
    assert Source(tmp_path).config == {}


def test_a_dialect_that_does_not_exist(tmp_path):
    with pytest.raises(DialectError, match="dialect='nonsense' is unknown; known are .*saelens"):
        load_dictionary(saved(tmp_path / "ae.pt", {}), dialect="nonsense")
