"""Whole pickled models of overcomplete: parts, hooks and attributes that a state dict has not."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from tests.interop.test_overcomplete import UNKNOWN, D, N, opened, refused, state
from vlsae.interop.dialect import DialectError
from vlsae.interop.load import load_dictionary


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """Makes a pickle of a TopKSAE out of plain torch modules under the library's names, with attributes to choose."""
    module = types.ModuleType("overcomplete.sae.made_up")
    for name in ("overcomplete", "overcomplete.sae", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)

    def make(kind="TopKSAE", *, activation=None, layer=(), **attributes):
        for name in (kind, "MLPEncoder", "DictionaryLayer"):
            setattr(module, name, type(name, (torch.nn.Module,), {"__module__": module.__name__}))
        sae, sae.encoder, sae.dictionary = getattr(module, kind)(), module.MLPEncoder(), module.DictionaryLayer()
        sae.encoder.final_block = torch.nn.Sequential(torch.nn.Linear(D, N))
        sae.encoder.final_activation = activation or torch.nn.ReLU()
        sae.dictionary._weights = torch.nn.Parameter(state()["dictionary._weights"])
        sae.dictionary.normalization = F.normalize  # a function; overwritten by most tests
        for owner, values in (
            (sae, {"top_k": 3} | attributes),
            (sae.dictionary, {"normalization": "l2"} | dict(layer)),
        ):
            for name, value in values.items():
                setattr(owner, name, value)
        torch.save(sae, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return make


def test_what_only_a_pickle_says_is_looked_at(pickled):
    assert load_dictionary(pickled(), **UNKNOWN).k == 3
    assert load_dictionary(pickled(nb_concepts=N), **UNKNOWN).metadata["class"] == "TopKSAE"
    for facts, match in (
        ({"activation": torch.nn.GELU()}, "its encoder is Linear -> GELU; only Linear -> ReLU"),
        ({"layer": {"normalization": F.normalize}}, "normalization=normalize: expected one of l2"),
        ({"nb_concepts": 7}, "says 7 concepts and has a dictionary of 20"),
        ({"n_components": 7}, "says 7 concepts"),  # before release 0.1
        ({"top_k": N + 1}, "says k=21: expected a finite whole number"),
        ({"kind": "CrossSAE"}, "is a CrossSAE; known are SAE, TopKSAE"),
        ({"kind": "QSAE"}, "QSAE, whose codes"),
        ({"kind": "MpSAE", "k": 2}, "is a MpSAE with an encoder of another kind"),
    ):
        with pytest.raises(DialectError, match=match):
            load_dictionary(pickled(**facts), **UNKNOWN)


def test_a_dictionary_kept_from_before_other_weights_were_loaded_is_refused(pickled):
    """A model saved in evaluation mode decodes with the dictionary of its last eval(), whatever was loaded since."""
    fused = F.normalize(state()["dictionary._weights"], dim=1)
    kept = pickled(layer={"training": False, "_fused_dictionary": fused})
    assert load_dictionary(kept, **UNKNOWN).W_dec.allclose(fused, atol=1e-6)
    with pytest.raises(DialectError, match="evaluation mode with another dictionary"):
        load_dictionary(pickled(layer={"training": False, "_fused_dictionary": fused.roll(1, 0)}), **UNKNOWN)
    in_training = pickled(
        training=False, layer={"training": True, "_fused_dictionary": fused.roll(1, 0)}
    )  # there it is made anew
    assert load_dictionary(in_training, **UNKNOWN).W_dec.allclose(fused, atol=1e-6)


def test_keys_may_have_dots_and_lists_may_hold_models(pickled, tmp_path):
    """A pickled model is found wherever it stands; taken for a state dict, its class and attributes would be passed over."""
    model = torch.load(pickled(), weights_only=False)
    for content in ({"sae.v1": model}, [model], {"run": {"module.sae": model}}):
        found = opened(tmp_path, content)
        assert found.k == 3 and found.metadata["class"] == "TopKSAE"
    found = opened(tmp_path, {f"module._orig_mod.{name}": values for name, values in state().items()}, family="relu")
    assert torch.equal(
        found.W_enc, state()["encoder.final_block.0.weight"].T
    )  # as data parallel or compiled models name them


def test_attributes_that_no_release_sets_are_asked_about(pickled):
    for facts, named in (
        ({"scale": 2.5}, "scale=2.5"),
        ({"layer": {"temperature": 0.5}}, "dictionary.temperature=0.5"),
        ({"dropout": 0.1}, "dropout=0.1"),  # of an MpSAE, not of this class
        ({"_gain": 3.0}, "_gain=3.0"),
        ({"forward": F.relu}, "forward=<torch"),
    ):
        path = pickled(**facts)
        with pytest.raises(DialectError, match=f"other_fields=.*{named}"):
            load_dictionary(path, **UNKNOWN)
        found = load_dictionary(path, **UNKNOWN, other_fields="ignored")
        assert found.k == 3 and named in found.metadata["notes"][0]


def test_parts_and_hooks_that_change_codes_are_refused(pickled, tmp_path):
    """None of these has a tensor, so that the weights alone look like those of a plain model."""

    def changed(change):
        model = torch.load(pickled(), weights_only=False)
        change(model)
        return model

    for change, match in (
        (lambda m: m.encoder.final_block.append(torch.nn.Softmax(-1)), "Linear -> Softmax -> ReLU"),
        (
            lambda m: m.encoder.final_block.append(torch.nn.LayerNorm(N, elementwise_affine=False)),
            "Linear -> LayerNorm",
        ),
        (lambda m: delattr(m.encoder, "final_activation"), "its encoder is Linear; only"),
        (lambda m: m.add_module("extra", torch.nn.Tanh()), "its extra is a Tanh, which no release has there"),
        (lambda m: m.register_forward_pre_hook(F.relu), r"its model has hooks \(_forward_pre_hooks"),
        (lambda m: m.encoder.register_forward_hook(F.relu), r"its encoder has hooks \(_forward_hooks"),
        (lambda m: m.encoder.final_block[0].register_forward_hook(F.relu), "its encoder.final_block.0 has hooks"),
        (lambda m: m.register_buffer("pre_bias", torch.ones(D)), "also holds pre_bias"),
    ):
        refused(tmp_path, changed(change), match)
    harmless = changed(lambda m: m.encoder.final_block.append(torch.nn.Identity()))
    assert opened(tmp_path, harmless).k == 3


def test_half_precision_is_noted(pickled, tmp_path):
    """In evaluation mode the kept dictionary is rounded to half precision too, which is no other dictionary."""
    for dtype in (torch.float16, torch.bfloat16):
        model = torch.load(pickled(), weights_only=False).to(dtype)
        rows = F.normalize(model.dictionary._weights.data, dim=1)
        model.dictionary.training, model.dictionary._fused_dictionary = False, rows
        notes = opened(tmp_path, model).metadata["notes"]
        assert any(str(dtype).removeprefix("torch.") in note for note in notes)
        model.dictionary._fused_dictionary = rows.roll(1, 0)
        refused(tmp_path, model, "evaluation mode with another dictionary")


def test_a_threshold_of_a_pickle_is_one_number(pickled):
    path = pickled("BatchTopKSAE", running_threshold=torch.ones(N))
    with pytest.raises(DialectError, match="running_threshold is no number"):
        load_dictionary(path, **UNKNOWN, k=2, threshold=1.0)
