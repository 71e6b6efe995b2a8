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
        for at, letter in enumerate(module):
            if letter == ".":
                monkeypatch.setitem(sys.modules, module[:at], ModuleType(module[:at]))
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


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
def test_the_first_versions_normalised_the_output_alone(bare, pickled, normalize):
    """Without the field `architecture` nothing tells their forward pass, which took b_dec off activations as they came."""
    x, facts = inputs(8), {"activation_fn_str": "relu", "normalize_activations": normalize}
    today = load_dictionary(bare(**facts), **UNKNOWN).encode(x)
    for path in (bare(architecture=..., **facts), pickled(hook_point_layer=9, **facts)):
        with pytest.raises(
            DialectError, match="normalized_encoder=...: .*True, as its loader computes today, or False"
        ):
            load_dictionary(path, **UNKNOWN)
        with pytest.raises(DialectError, match=f"decoder behind {normalize}, is nothing that our families compute"):
            load_dictionary(path, normalized_encoder=False, **UNKNOWN)
        with pytest.raises(DialectError, match="expected True or False"):
            load_dictionary(path, normalized_encoder="True", **UNKNOWN)
        assert torch.equal(load_dictionary(path, normalized_encoder=True, **UNKNOWN).encode(x), today)
    assert load_dictionary(bare(architecture=...), **UNKNOWN).transform.kind == "none"  # then it is the same


def test_answers_that_no_family_computes_are_refused_as_in_a_file(pickled):
    path = pickled(hook_point_layer=9)
    with pytest.raises(DialectError, match="normalize_activations='batch_norm'.*nothing that our families compute"):
        load_dictionary(path, activation_fn_str="relu", normalize_activations="batch_norm", **UNKNOWN)
    with pytest.raises(DialectError, match="k='7' is no answer.*a finite whole number, at least 1"):
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
    ({"expansion_factor": 4}, "says expansion_factor=4, expected 3"), ({"d_sae": 2**90}, "says d_sae=1237940039285"),
    ({"is_transcoder": "no"}, "is_transcoder=no of its configuration must be true or false"),
    ({"is_transcoder": 0}, "is_transcoder=0 of its"), ({"activation_fn_kwargs": "k=7"}, "activation_fn_kwargs=k=7 must be"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": True}}, "k=True must be a whole number"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": "7" * 10**6}}, r"k='7{59}\.\.\. must be"),
    ({"activation_fn_str": "t" * 10**6}, r"'t{60}\.\.\.' with"),
    ({"architecture": ["gated"]}, r"architecture \"\['gated'\]\", but"),
])  # fmt: skip
def test_what_cannot_be_computed_or_contradicts_is_refused(bare, facts, words):
    with pytest.raises(DialectError, match=words):
        load_dictionary(bare(**facts), **UNKNOWN)


@pytest.mark.parametrize("facts, words", [
    ({"activation_fn_kwargs": {"k": 5}}, r"activation_fn_kwargs=\{'k': 7\} and \{'k': 5\}"),
    ({"normalize_activations": "none", "d_in": 9}, "normalize_activations=layer_norm and none, d_in=8 and 9"),
    ({"layer_subtype": "hook_mlp_out"}, "layer_subtype=hook_resid_post and hook_mlp_out"),
    ({"architecture": ...}, None), ({"hook_point_layer": [5]}, None), ({"dataset_name": "other"}, None),
    ({"hook_point_layer": ..., "d_in": 9}, None),
])  # fmt: skip
def test_a_pickled_configuration_and_one_beside_it_must_agree(tmp_path, bare, facts, words):
    """Its loader takes the first alone, and the second for files of the hub."""
    beside = {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 7},
        "normalize_activations": "layer_norm",
        **facts,
    }
    shutil.copy(FIXTURES / "pickled_topk" / "weights.pt", tmp_path)
    shutil.copy(bare(**beside) / "config.json", tmp_path)
    if words is None:
        assert load_dictionary(tmp_path / "weights.pt").k == 7
    else:
        with pytest.raises(DialectError, match=f"disagree: {words}"):
            load_dictionary(tmp_path / "weights.pt")


def test_fields_that_no_version_has_are_asked_about(bare):
    """A fork's field may change codes from the same tensors, also one among the settings of the activation."""
    for facts in ({"use_jump_relu": False}, {"activation_fn_kwargs": {"use_jump_relu": 1}}):
        with pytest.raises(DialectError, match=r"other_fields=...: what fields that ViT-Prisma 2.0 .*use_jump_relu="):
            load_dictionary(bare(**facts), **UNKNOWN)
        notes = load_dictionary(bare(**facts), other_fields="ignored", **UNKNOWN).metadata["notes"]
        assert "use_jump_relu" in notes[0]


def test_fields_of_all_known_versions_are_no_question(bare):
    old = {"cls_token": False, "num_patch": 7, "sparsity_loss": "l1", "unique_hash": "a", "run_name": "b", "_dtype": "float32",
           "_device": "cuda", "training_eval": {"batch_size": 28}, "hook_point": "blocks.5.hook_resid_post"}  # fmt: skip
    assert load_dictionary(bare(expansion_factor=[3], **old)).metadata["site"] == "vision.5.resid_post"


def test_its_trainer_calls_a_standard_dictionary_vanilla_too(bare):
    assert load_dictionary(bare(architecture="vanilla"), **UNKNOWN).family == "relu"


@pytest.mark.parametrize("facts", [{"model_path": "mine.pt"}, {"vit_model_cfg": {"n_layers": 2}}])
def test_a_model_with_other_weights_is_not_the_one_of_that_name(bare, facts):
    with pytest.raises(DialectError, match=r"model=...: .*the file says '(mine.pt|wkcn.*)'"):
        load_dictionary(bare(**facts))


def test_a_centred_model_is_told_of_where_codes_depend_on_it(bare):
    """Layer norm takes every token's mean off itself: codes of x and of x + c are the same."""
    x = inputs(8)
    for normalize, told in (("layer_norm", False), ("none", True), ("constant_norm_rescale", True)):
        dictionary = load_dictionary(bare(normalize_activations=normalize), **UNKNOWN)
        assert any("center_writing_weights" in note for note in dictionary.metadata["notes"]) == told
        moved = (dictionary.encode(x + 0.5) - dictionary.encode(x)).abs().max()
        assert (moved > 0.1) if told else (moved < 1e-4)  # a few roundings of numbers near 10


@pytest.mark.parametrize(
    "dtype", [{"dtype": {"__type__": "torch.dtype", "value": "torch.float16"}}, {"_dtype": "float16"}]
)
def test_half_precision_is_told(bare, pickled, dtype):
    facts = {"dtype": ..., **dtype}
    assert "float16, and ViT-Prisma computes in it" in load_dictionary(bare(**facts), **UNKNOWN).metadata["notes"][-1]
    path = pickled(activation_fn_str="relu", normalize_activations="none", dtype=torch.bfloat16)
    assert "in bfloat16" in load_dictionary(path, **UNKNOWN).metadata["notes"][-1]
    for none in ("torch.float32", "double", "no type", [1]):
        assert "computes in" not in str(load_dictionary(bare(dtype=none), **UNKNOWN).metadata["notes"])


@pytest.mark.parametrize("field, tokens", [("cls_token_only", "the class token"), ("cls_token", "the class token"),
                                           ("use_patches_only", "patches")])  # fmt: skip
def test_the_tokens_it_was_trained_on_are_told(bare, field, tokens):
    notes = load_dictionary(bare(**{field: True}), **UNKNOWN).metadata["notes"]
    assert notes[0] == f"It was trained on {tokens} alone."


def test_files_of_saelens_2_are_refused_with_the_way_to_convert_them(tmp_path):
    tensors = torch.load(FIXTURES / "bare_relu_none" / "weights.pt")
    torch.save({"config": {"hook_point": "a"}, "autoencoder": {"state_dict": tensors}}, tmp_path / "old.pt")
    with pytest.raises(DialectError, match="SAELens 2.*load_from_pretrained_legacy_saelens_v2.*save_model"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("module, name", [("vit_prisma.vjepa_hf.configs.sae_jepa_config", "JEPABaseConfig"),
                                          ("vit_prisma.sae.config", "VisionModelSAERunnerConfig")])  # fmt: skip
def test_configurations_of_all_its_modules_are_read(pickled, module, name):
    path = pickled(module, name, activation_fn_str="relu", normalize_activations="none")
    assert load_dictionary(path, **UNKNOWN).family == "relu"


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
