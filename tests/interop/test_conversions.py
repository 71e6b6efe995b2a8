"""Every checkpoint of a peer into every format that can be written: exactly the same there, or refused with the reason."""

import json
from pathlib import Path

import pytest

from vlsae.interop.convert import convert, writers
from vlsae.interop.dialect import DialectError
from vlsae.interop.load import load_dictionary

CASES = sorted(path.parent for path in (Path(__file__).parent / "fixtures").rglob("case.json"))
KEPT = {  # by saelens, which must open all that it has an architecture for
    "relu", "topk", "jumprelu", "batch_topk", "nested_dictionary", "gated", "abs_topk", "archetypal", "matching_pursuit",
}  # fmt: skip


def _answers(facts):
    return {"model": "unknown", "site": "unknown"} | facts["answers"]


def _kinds() -> dict[tuple, Path]:
    """One case of every family behind every input transform."""
    found = {}
    for folder in CASES:
        facts = json.loads((folder / "case.json").read_text())
        dictionary = load_dictionary(folder / facts["opens"], **_answers(facts))
        found.setdefault((dictionary.family, dictionary.transform.kind), folder)
    return found


def _convert(folder: Path, out: Path) -> dict[str, str]:
    """What became of it, by format: "kept", or why not; `convert` itself compares codes and reconstructions."""
    facts, done = json.loads((folder / "case.json").read_text()), {}
    for to in writers():
        try:
            convert(folder / facts["opens"], out / to, to=to, **_answers(facts))
            done[to] = "kept"
        except DialectError as error:
            done[to] = str(error)
            assert not (out / to).exists()
    return done


def _hold(family: str, transform: str, done: dict[str, str]) -> None:
    assert done["vlsae"] == "kept"
    if family in KEPT:
        assert done["saelens"] == "kept"
    if family in ("relu", "topk") and transform not in ("unit", "layer_norm_unbiased"):
        assert done["dictionary_learning"] == done["sparsify"] == "kept"
    for message in done.values():
        assert "another dictionary" not in message  # a writer knows by itself what it cannot express
        assert "cannot be read again" not in message


def test_one_of_each_family_and_transform(tmp_path):
    kinds = _kinds()
    assert len(kinds) >= 15
    for (family, transform), folder in kinds.items():
        _hold(family, transform, _convert(folder, tmp_path / f"{family}-{transform}"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_every_fixture(folder, tmp_path):
    facts = json.loads((folder / "case.json").read_text())
    dictionary = load_dictionary(folder / facts["opens"], **_answers(facts))
    _hold(dictionary.family, dictionary.transform.kind, _convert(folder, tmp_path))
