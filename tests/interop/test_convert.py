"""Conversion: the written files are the same dictionary, what is lost is said, and nothing wrong stays behind."""

import json

import pytest
import torch

from vlsae import load_dictionary
from vlsae.cli import main
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.checkpoint import save_dictionary
from vlsae.dictionaries.jumprelu import JumpReLUDictionary
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import KINDS, InputTransform
from vlsae.interop.answers import Fact, model, site
from vlsae.interop.convert import convert, writers
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError

D, N = 12, 30


class Bare(Dialect):
    """A format of weights alone, behind thresholds: no k, no model, no site; transforms are folded."""

    name, project = "bare", "Bare"
    damage = ""  # what goes wrong on the way

    def sniff(self, source):
        return False

    def read(self, source, answers):
        told = answers.settle(model=model(), site=site(), k=Fact(None, "active latents", "a number"))
        found = TopKDictionary(D, N, k=told.k)
        tensors = {name: source.tensor(name) for name in source.shapes}
        found.load_state_dict({"W_enc": tensors["W_dec"].T, **tensors})
        found.metadata = {"model": told.model, "site": told.site}
        return found

    def write(self, dictionary, folder):
        if dictionary.signed:
            raise DialectError("Bare has no signed codes; convert to vlsae.")
        weights = {name: getattr(dictionary, name).detach().clone() for name in ("W_dec", "b_enc", "b_dec")}
        if dictionary.transform.kind != "none":
            dictionary.fold_transform()
            weights = {name: getattr(dictionary, name).detach().clone() for name in weights}
        if self.damage == "value":
            weights["W_dec"][3] *= 1 + 1e-4
        if self.damage == "nan":
            weights["W_dec"][3] = float("nan")
        torch.save(weights, folder / "ae.pt")
        if self.damage == "crash":
            raise OSError("No space left on device")


class FoldingBare(Bare):
    def write(self, dictionary, folder):
        import copy

        super().write(copy.deepcopy(dictionary), folder)


@pytest.fixture
def bare(monkeypatch):
    DIALECTS._discover()
    monkeypatch.setitem(DIALECTS._parts, "bare", FoldingBare)
    monkeypatch.setattr(Bare, "damage", "")
    return Bare


@pytest.fixture
def saved(tmp_path):
    """A tied TopK dictionary away from the origin, on disk."""
    return save_dictionary(tied(), tmp_path / "in")


def tied(**metadata):
    sae = TopKDictionary(D, N, k=3, seed=1).requires_grad_(False)
    sae.b_dec += 2
    sae.b_enc += 0.1 * torch.randn(N, generator=torch.Generator().manual_seed(2))
    sae.metadata = {"model": "tiny", "site": "vision.4.resid_post", "recipe": {"k": 3}, **metadata}
    return sae


def test_our_own_format_keeps_everything(saved, tmp_path):
    done = convert(saved, tmp_path / "out", to="vlsae")
    assert done.lost == [] and done.error == 0 and done.compared > 200
    before, after = load_dictionary(saved), load_dictionary(tmp_path / "out")
    assert after.metadata == before.metadata and after.settings == before.settings
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["jumprelu", "batch_topk", "projection"])
def test_every_transform_and_sign_can_be_compared(family, kind, tmp_path):
    """High thresholds want long vectors, but tokens of a fixed length have no more than that."""
    transform = InputTransform.fit(5 + torch.randn(50, D, generator=torch.Generator().manual_seed(0)), kind)
    sae = {
        "jumprelu": lambda: JumpReLUDictionary(D, N, start=400.0 if transform.affine else 0.4),
        "batch_topk": lambda: BatchTopKDictionary(D, N, k=3),
        "projection": lambda: ProjectionDictionary(D, 6, k=2),
    }[family]()
    sae.transform = transform
    done = convert(save_dictionary(sae, tmp_path / "in"), tmp_path / "out", to="vlsae")
    assert done.lost == [] and done.compared > 200 and done.error == 0


def test_what_is_lost_is_said(bare, saved, tmp_path):
    done = convert(saved, tmp_path / "out", to="bare")
    assert done.error < 1e-6 and done.family == done.becomes == "topk"
    assert done.lost == [
        "what has to be said when it is opened again: model=tiny, site=vision.4.resid_post, k=3.",
        "metadata that Bare has no place for: recipe.",
    ]
    again = load_dictionary(tmp_path / "out", dialect="bare", model="tiny", site="vision.4.resid_post", k=3)
    x = 2 + torch.randn(50, D)
    assert torch.equal(again.encode(x) != 0, load_dictionary(saved).encode(x) != 0)


def test_a_folded_transform_is_compared_with_a_folded_one(bare, tmp_path):
    sae = tied()
    sae.transform = InputTransform.fit(
        5 + torch.randn(50, D, generator=torch.Generator().manual_seed(0)), "centre_sqrt_d"
    )
    done = convert(save_dictionary(sae, tmp_path / "in"), tmp_path / "out", to="bare")
    assert any("the input transform 'centre_sqrt_d'" in sentence for sentence in done.lost)


@pytest.mark.parametrize(("damage", "message"), [
    ("value", "is another dictionary when read again"), ("nan", "cannot be read again, and was not kept"),
    ("crash", "No space left"),
])  # fmt: skip
def test_nothing_wrong_stays_behind(bare, saved, tmp_path, damage, message):
    bare.damage = damage
    with pytest.raises((DialectError, OSError), match=message):
        convert(saved, tmp_path / "out", to="bare")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_other_codes_are_an_error(bare, saved, tmp_path, monkeypatch):
    """A k that is written wrongly changes which latents are active."""
    read = FoldingBare.read

    def other(self, source, answers):
        found = read(self, source, answers)
        found.k = 2
        return found

    monkeypatch.setattr(FoldingBare, "read", other)
    with pytest.raises(DialectError, match="have other active latents"):
        convert(saved, tmp_path / "out", to="bare")


def test_refusals(bare, saved, tmp_path):
    with pytest.raises(DialectError, match="written as 'nonsense'; choose one of bare, .*vlsae"):
        convert(saved, tmp_path / "out", to="nonsense")
    with pytest.raises(DialectError, match="no signed codes"):
        convert(save_dictionary(ProjectionDictionary(D, 6, k=2), tmp_path / "signed"), tmp_path / "out", to="bare")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.raises(DialectError, match="exists already"):
        convert(saved, tmp_path / "taken", to="vlsae")
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"
    assert set(writers()) >= {"bare", "vlsae"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "signed", "taken"]


def test_an_empty_folder_is_filled(saved, tmp_path):
    (tmp_path / "out").mkdir()
    convert(saved, tmp_path / "out", to="vlsae")
    assert load_dictionary(tmp_path / "out").k == 3


def test_the_command(bare, saved, tmp_path, capsys):
    assert main(["convert", str(saved), str(tmp_path / "a"), "--to", "vlsae"]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    assert main(["convert", str(saved), "--out", str(tmp_path / "b"), "--to", "bare", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["dictionary"] == str(tmp_path / "b")
        and facts["lost"][1] == "metadata that Bare has no place for: recipe."
    )
    again = ["convert", str(tmp_path / "b"), str(tmp_path / "c"), "--to", "vlsae", "--dialect", "bare"]
    assert main(again) == 2 and "k=...: active latents" in capsys.readouterr().err
    assert main([*again, "--set", "k=3", "model=tiny", "site=vision.4.resid_post"]) == 0
    told = {"k": 3, "model": "tiny", "site": "vision.4.resid_post"}
    opened = load_dictionary(tmp_path / "c").metadata["opened_from"]
    assert opened == {"dialect": "bare", "file": "ae.pt", "told": told}
