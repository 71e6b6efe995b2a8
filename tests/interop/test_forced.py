"""A file that is said to be of another project than it is: refused in words, or opened with its own codes; never otherwise."""

import json

import pytest
import torch
from safetensors.torch import load

from tests.interop.test_fixtures import CASES
from vlsae.dictionaries.checkpoint import CheckpointError
from vlsae.interop.answers import Answers
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_wrong_dialect_never_gives_wrong_codes(folder):
    facts = json.loads((folder / "case.json").read_text())
    expected = load((folder / "expected.st").read_bytes())
    for dialect in sorted(set(DIALECTS) - {facts["dialect"]}):
        for answers in ({}, facts["answers"]):
            try:
                said = {"model": "unknown", "site": "unknown"} | answers
                opened = load_dictionary(folder / facts["opens"], dialect=dialect, **said)
            except DialectError as error:
                assert len(str(error)) < 3000
                continue
            found = opened.encode(expected["x"])
            assert found.shape == expected["codes"].shape, dialect
            assert (found - expected["codes"]).abs().max() <= 1e-5 * expected["codes"].abs().max(), dialect
            assert torch.isfinite(found).all()


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_a_reader_refuses_in_words_what_it_does_not_know(dialect):
    """Also without the look at other dialects, which a file that nobody recognises passes."""
    refused = 0
    for folder in CASES:
        facts = json.loads((folder / "case.json").read_text())
        source = Source(folder / facts["opens"])
        try:
            DIALECTS.get(dialect)().read(source, Answers({"model": "unknown", "site": "unknown"}, str(source.path)))
        except CheckpointError as error:
            refused += 1
            assert len(str(error)) < 3000
    assert refused > len(CASES) / 2
