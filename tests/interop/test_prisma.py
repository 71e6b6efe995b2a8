"""The dialect prisma: names that are certain, questions, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from tests.interop.make_fixtures import inputs
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "prisma"
UNKNOWN = {"model": "unknown", "site": "unknown"}


@pytest.fixture
def bare(tmp_path):
    """A copy of a bare state dict, with other facts in its configuration; a fact that is ... is taken out."""

    def copy(name="bare_relu_none", tensors=None, **facts):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(FIXTURES / name, folder)
        config = json.loads((folder / "config.json").read_text()) | facts
        config = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))
        if tensors is not None:
            torch.save(torch.load(folder / "weights.pt") | tensors, folder / "weights.pt")
        return folder

    return copy


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """A file with a pickled configuration that has only the given attributes."""

    def save(module="vit_prisma.sae.config", name="VisionModelSAERunnerConfig", **facts):
        cls = type(name, (), {"__module__": module})
        holder = ModuleType(module)
        setattr(holder, name, cls)
        for parent in ("vit_prisma", "vit_prisma.sae"):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, holder)
        config = cls()
        vars(config).update(facts)
        tensors = torch.load(FIXTURES / "bare_relu_none" / "weights.pt")
        torch.save({"cfg": config, "state_dict": tensors}, tmp_path / "old.pt")
        return tmp_path / "old.pt"

    return save


@pytest.mark.parametrize("name, place", [
    ("pickled_relu", "vision.5.mlp_out"), ("pickled_gated", "vision.5.resid_post"),
    ("bare_relu_constant_norm", "vision.5.resid_pre"),
])  # fmt: skip
def test_a_transformers_clip_and_a_hook_of_its_vision_tower_need_no_answer(name, place):
    metadata = load_dictionary(FIXTURES / name).metadata
    assert metadata["model"] == "hf:wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M" and metadata["site"] == place
    assert metadata["l1_coefficient"] == 0.0002 and metadata["context_size"] == 50
    assert metadata["model_name"] == "wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M"
    assert json.loads(json.dumps(metadata)) == metadata


def test_a_repository_that_open_clip_knows_once_is_its_model():
    metadata = load_dictionary(FIXTURES / "bare_topk").metadata
    assert metadata["model"] == "open_clip:ViT-B-32/datacomp_xl_s13b_b90k"
    assert metadata["model_name"] == "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"


def test_training_on_the_class_token_alone_is_kept():
    assert load_dictionary(FIXTURES / "pickled_topk").metadata["cls_token_only"] is True


@pytest.mark.parametrize("facts, asked, words", [
    ({"model_name": "open-clip:timm/vit_base_patch32_clip_224.laion400m_e31"}, "model", "laion400m_e31"),  # two names
    ({"model_name": "open-clip:nobody/nothing"}, "model", "nobody/nothing"),
    ({"model_name": "facebook/dino-vitb16"}, "model", "facebook/dino"),
    ({"model_name": "timm/vit_base_patch32_clip_224"}, "model", "timm/vit"),
    ({"model_name": ["a"]}, "model", "the model"),
    ({"layer_subtype": "hook_resid_mid"}, "site", "blocks.5.hook_resid_mid"),
    ({"model_class_name": "HookedTransformer"}, "site", "blocks.5.hook_resid_post"),
    ({"hook_point_head_index": 3}, "site", "head 3"),
    ({"hook_point": "blocks.2.hook_mlp_out"}, "site", "blocks.2.hook_mlp_out and blocks.5.hook_resid_post"),
    ({"layer_subtype": ...}, "site", "where in the model"),
    ({"activation_fn_str": ...}, "activation_fn_str", "relu or topk"),
    ({"normalize_activations": ...}, "normalize_activations", "layer_norm, constant_norm_rescale, none"),
    ({"activation_fn_str": "topk"}, "k", "active latents a token"),
])  # fmt: skip
def test_what_is_not_certain_is_asked(bare, facts, asked, words):
    with pytest.raises(DialectError, match=f"{asked}=...:.*{words}"):
        load_dictionary(bare(**facts))


def test_an_old_configuration_is_asked_for_all_in_one_error(pickled):
    """Today's class would fill in its own defaults, layer_norm among them, for fields that did not exist then."""
    path = pickled(hook_point_layer=9, model_name="wkcn/TinyCLIP-ViT-40M-32", d_in=8)
    with pytest.raises(DialectError) as caught:
        load_dictionary(path)
    assert all(f"{name}=...:" in str(caught.value) for name in ("site", "activation_fn_str", "normalize_activations"))
    with pytest.raises(DialectError, match="k=...:"):
        load_dictionary(path, activation_fn_str="topk", normalize_activations="none", site="vision.9.mlp_out")
    expected = load_file(FIXTURES / "bare_relu_none" / "expected.st")
    dictionary = load_dictionary(path, activation_fn_str="relu", normalize_activations="none", site="vision.9.mlp_out")
    assert torch.equal(dictionary.encode(expected["x"]) > 0, expected["codes"] > 0)
    assert dictionary.metadata["site"] == "vision.9.mlp_out"


def test_answers_that_no_family_computes_are_refused_as_in_a_file(pickled):
    path = pickled(hook_point_layer=9)
    with pytest.raises(DialectError, match="normalize_activations='batch_norm'.*nothing that our families compute"):
        load_dictionary(path, activation_fn_str="relu", normalize_activations="batch_norm", **UNKNOWN)
    with pytest.raises(DialectError, match="k='7' must be a whole number"):
        load_dictionary(path, activation_fn_str="topk", k="7", normalize_activations="none", **UNKNOWN)


@pytest.mark.parametrize("facts, words", [
    ({"activation_fn_str": "tanh-relu"}, "activation_fn_str='tanh-relu'.*expected relu or topk"),
    ({"activation_fn_str": 3}, "must be text"),
    ({"normalize_activations": "expected_average_only_in"}, "nothing that our families compute"),
    ({"architecture": "jumprelu"}, "architecture 'jumprelu', but its tensors are those of 'standard'"),
    ({"architecture": "gated"}, "architecture 'gated', but"), ({"is_transcoder": True}, "architecture 'transcoder', but"),
    ({"is_transcoder": True, "transcoder_with_skip_connection": True}, "skip connection"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3.5}}, "k=3.5 must be a whole number"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 99}}, "k=99"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "postact_fn": "identity"}}, "leaves negative codes"),
    ({"d_in": 9}, "says d_in=9, expected 8"), ({"d_sae": "x"}, "says d_sae=x, expected 24"),
])  # fmt: skip
def test_what_cannot_be_computed_or_contradicts_is_refused(bare, facts, words):
    with pytest.raises(DialectError, match=words):
        load_dictionary(bare(**facts), **UNKNOWN)


def test_a_gated_dictionary_with_topk_magnitudes_is_refused(bare):
    folder = bare("bare_gated_constant_norm", activation_fn_str="topk", activation_fn_kwargs={"k": 7})
    with pytest.raises(DialectError, match="with the architecture 'gated' is nothing"):
        load_dictionary(folder, **UNKNOWN)


@pytest.mark.parametrize("tensors, words", [
    ({"W_skip": torch.zeros(8, 8)}, "skip connection"), ({"threshold": torch.zeros(24)}, "holds W_dec, W_enc"),
    ({"W_dec": torch.zeros(24, 9)}, r"W_dec is \[24, 9\], expected \[24, 8\].*one width"),
    ({"b_enc": torch.zeros(23)}, r"b_enc is \[23\]"), ({"W_enc": torch.zeros(8)}, "expected a matrix"),
    ({"b_dec": torch.full((8,), float("nan"))}, "NaN"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(bare, tensors, words):
    with pytest.raises(DialectError, match=words):
        load_dictionary(bare(tensors=tensors), **UNKNOWN)


def test_a_transcoder_says_that_it_is_one():
    dictionary = load_dictionary(FIXTURES / "transcoder_topk", site="unknown")
    assert dictionary.family == "transcoder" and "blocks.9.hook_mlp_out" in dictionary.metadata["notes"][0]


def test_a_gated_file_without_the_bias_that_it_does_not_use_is_read(bare):
    folder = bare("bare_gated_constant_norm")
    tensors = torch.load(folder / "weights.pt")
    del tensors["b_enc"]
    before = load_dictionary(folder)
    torch.save(tensors, folder / "weights.pt")
    assert torch.equal(load_dictionary(folder).encode(inputs(8)), before.encode(inputs(8)))


def test_fewer_than_k_are_positive_in_the_fixtures():
    """Or they would not tell a ReLU after the k largest from none."""
    for name in ("pickled_topk", "bare_topk", "transcoder_topk"):
        active = (load_file(FIXTURES / name / "expected.st")["codes"] > 0).sum(1)
        assert int(active.min()) < 7 == int(active.max())


@pytest.mark.parametrize("config", [{}, {"hook_point_layer": 3}, {"layer_subtype": "a"}, {"model_class_name": "HookedViT"},
                                    {"model_class_name": "HookedTransformer", "hook_point_layer": 3}])  # fmt: skip
def test_other_projects_configurations_are_passed_over(bare, config):
    folder = bare()
    (folder / "config.json").write_text(json.dumps(config))
    assert not DIALECTS.get("prisma")().sniff(Source(folder))


def test_a_pickled_configuration_of_another_project_is_none_of_its(pickled):
    path = pickled(module="vit_prisma.sae.config", name="Config", hook_point_layer=9)
    assert DIALECTS.get("prisma")().sniff(Source(path))  # an older name of the class
    with pytest.raises(DialectError, match="run code"):
        load_dictionary(pickled(module="vit_prisma.sae.other", hook_point_layer=9))


def test_it_is_not_written(tmp_path):
    with pytest.raises(DialectError, match="not written for it"):
        DIALECTS.get("prisma")().write(load_dictionary(FIXTURES / "pickled_relu"), tmp_path)
