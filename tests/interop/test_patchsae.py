import copy
import json
import zipfile
from pathlib import Path

import pytest
import torch

from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "patchsae"
D, N = 4, 8
CONFIG = {"model_name": "openai/clip-vit-base-patch16", "module_name": "resid", "block_layer": -2, "d_in": D, "d_sae": N,
          "expansion_factor": 2, "gated_sae": None}  # fmt: skip


def tensors(**more) -> dict:
    drawn = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,), **more}
    return {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}


def saved(folder: Path, state: dict | None = None, **settings) -> Path:
    torch.save({"cfg": {**CONFIG, **settings}, "state_dict": state or tensors()}, folder / "out.pt")
    return folder / "out.pt"


@pytest.mark.parametrize(
    "name", ["openai/clip-vit-base-patch16", "clip-vit-base-patch16", "openai/openai/clip-vit-base-patch16"]
)
def test_openai_models_are_known_whatever_their_prefix(tmp_path, name):
    dictionary = load_dictionary(saved(tmp_path, model_name=name))
    assert dictionary.metadata["model"] == "hf:openai/clip-vit-base-patch16"
    assert (dictionary.metadata["site"], dictionary.metadata["model_name"]) == ("vision.-2.resid_post", name)


@pytest.mark.parametrize(
    "settings, asked, said",
    [
        ({"model_name": "brain-bzh/reve-base"}, ("model=", "site="), "brain-bzh/reve-base"),  # an EEG transformer
        ({"model_name": "someone/clip-vit-base-patch16"}, ("model=",), "someone/clip-vit-base-patch16"),
        ({"model_name": "laion/clip-vit-b"}, ("model=",), "laion/clip-vit-b"),
        ({"custom_clip_ckpt_path": "mine.pt"}, ("model=",), "mine.pt"),
        ({"module_name": "mlp"}, ("site=",), "mlp of block -2"),
        ({"block_layer": True}, ("site=",), "resid of block True"),
        ({"block_layer": 10**30}, ("site=",), "resid of block 1000000"),
        ({"model_name": ["x"], "block_layer": None}, ("model=", "site="), "block None"),
    ],
)
def test_what_the_configuration_does_not_settle_is_asked_in_one_go(tmp_path, settings, asked, said):
    with pytest.raises(DialectError) as error:
        load_dictionary(saved(tmp_path, **settings))
    assert [part for part in ("model=", "site=") if f"\n  {part}" in str(error.value)] == list(asked)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "settings, more, said",
    [
        ({"d_in": 5}, {}, "d_in=5"),
        ({"d_sae": "8"}, {}, "d_sae=8"),
        ({"expansion_factor": 64}, {}, "expansion_factor=64"),
        ({"d_in": True}, {}, "d_in=True"),
        ({"gated_sae": True}, {}, "gated_sae=True"),
        ({}, {"r_mag": (N,), "b_mag": (N,)}, "gated_sae=False"),
        ({}, {"log_threshold": (N,)}, "log_threshold"),
        ({"topk_sae": True, "topk_k": 3}, {}, "topk_sae"),
        ({"sae_type": "jumprelu"}, {"log_threshold": (N,)}, "jumprelu"),
        ({"sae_type": "topk"}, {}, "topk"),
        ({"sae_type": "jumprelu", "gated_sae": True}, {"r_mag": (N,), "b_mag": (N,)}, "jumprelu"),
        ({"topk_sae": 1, "topk_k": 3}, {}, "topk_sae"),
        ({"spline_sae": "yes"}, {}, "spline_sae"),
        ({"d_sae": float("nan")}, {}, "d_sae=nan"),
        ({"d_sae": "8" * 10**6}, {}, "d_sae=8888888888888888888888888888888888888888..., and"),
        ({}, {"W_dec": (N,)}, "expected a matrix"),
        ({}, {"b_enc": (3,)}, "b_enc is [3]"),
    ],
)
def test_contradictions_and_the_variants_of_forks_are_refused(tmp_path, settings, more, said):
    with pytest.raises(DialectError) as error:
        load_dictionary(saved(tmp_path, tensors(**more), **settings))
    assert said in str(error.value) and "out.pt" in str(error.value)


def test_fields_that_no_version_has_are_asked_about(tmp_path):
    """The same tensors under another activation, as forks have them, would else be read as a ReLU."""
    path = saved(tmp_path, activation="sparsemax", topk_sae=False, topk_k=32)
    with pytest.raises(DialectError, match=r"other_fields=...: what fields that PatchSAE .*\(activation=sparsemax\)"):
        load_dictionary(path)
    assert "activation=sparsemax" in load_dictionary(path, other_fields="ignored").metadata["notes"][0]


def test_half_precision_is_told(tmp_path):
    state = {name: value.half() for name, value in tensors().items()}
    note = "float16, and PatchSAE computes in it"
    assert note in load_dictionary(saved(tmp_path, state, dtype=torch.float16)).metadata["notes"][0]
    assert load_dictionary(saved(tmp_path, state, dtype=torch.float32)).metadata["notes"] == []  # its module is float32


def test_what_its_scripts_read_is_written(tmp_path):
    """By its tasks/ and src/: the constructor, the forward pass in training and the hook."""
    read = {"d_in", "d_sae", "l1_coefficient", "dtype", "gated_sae", "use_ghost_grads", "mse_cls_coefficient", "block_layer",
            "module_name", "class_token", "model_name"}  # fmt: skip
    DIALECTS.get("patchsae")().write(dictionary(), tmp_path)
    assert read <= set(torch.load(tmp_path / "out.pt")["cfg"])


def test_training_facts_are_kept_and_the_class_token_is_told():
    dictionary = load_dictionary(FIXTURES / "hugofry")
    facts = dictionary.metadata
    assert "class token alone" in facts["notes"][0] and facts["dtype"] == "torch.float32"
    assert (facts["l1_coefficient"], facts["lr"], facts["expansion_factor"]) == (8e-5, 4e-4, 4)
    assert facts["dataset_path"] == "evanarlian/imagenet_1k_resized_256" and json.dumps(facts)
    notes = load_dictionary(FIXTURES / "gated").metadata["notes"]
    assert "all tokens" in notes[0] and "leaves the gated forward pass out" in notes[1]


def test_classes_of_the_same_name_elsewhere_are_refused(tmp_path):
    with zipfile.ZipFile(FIXTURES / "relu" / "out.pt") as whole, zipfile.ZipFile(tmp_path / "out.pt", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, whole.read(name).replace(b"src.sae_training.config", b"src.sea_training.config"))
    with pytest.raises(
        DialectError, match=r"src\.sea_training\.config\.ViTSAERunnerConfig, and opening it would run code"
    ):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("content", [{"cfg": None}, {"cfg": [1], "state_dict": [1]}, [1], {"state_dict": tensors()},
                                     {"cfg": torch.zeros(2), "state_dict": tensors()},
                                     {"cfg": {"hook_point": 1}, "state_dict": tensors()}])  # fmt: skip
def test_other_files_are_not_taken(tmp_path, content):
    torch.save(content, tmp_path / "out.pt")
    assert not DIALECTS.get("patchsae")().sniff(Source(tmp_path))


def dictionary(kind: str = "none") -> ReLUDictionary:
    made = ReLUDictionary(D, N, seed=1)
    made.load_state_dict({**tensors()})
    made.requires_grad_(False).metadata = {
        "model": "open_clip:ViT-B-16/openai",
        "site": "vision.3.resid_post",
        "lr": 0.1,
    }
    made.transform = InputTransform.fit(1 + torch.randn(50, D, generator=torch.Generator().manual_seed(2)), kind)
    return made


def test_what_is_written_reads_back(tmp_path):
    ours, x = dictionary(), torch.randn(20, D)
    DIALECTS.get("patchsae")().write(ours, tmp_path)
    again = load_dictionary(tmp_path)
    assert torch.equal(again.encode(x), ours.encode(x)) and torch.equal(again(x), ours(x))
    assert again.metadata.items() >= ours.metadata.items()


def test_an_input_transform_is_folded(tmp_path):
    ours, x = dictionary("centre_sqrt_d"), torch.randn(20, D)
    before = copy.deepcopy(ours.state_dict())
    DIALECTS.get("patchsae")().write(ours, tmp_path)
    again, scale = load_dictionary(tmp_path), ours.transform.scale[0]
    torch.testing.assert_close(again(x), ours(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(again.encode(x), ours.encode(x) / scale, rtol=0, atol=1e-5)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in before.items())  # a copy was folded


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: TopKDictionary(D, N, k=2), "family 'topk'"),
        (lambda d: setattr(d, "transform", InputTransform(D, "layer_norm")), "layer_norm"),
        (lambda d: setattr(d, "transform", InputTransform(D, "standardise")), "standardise"),
        (lambda d: d.metadata.update(site="text.3.resid_post"), "text.3.resid_post"),
        (lambda d: d.metadata.update(site="vision.3.mlp_out"), "vision.3.mlp_out"),
        (lambda d: d.metadata.update(site=None), "vision.BLOCK.resid_post"),
        (lambda d: d.metadata.update(model=None), "known model"),
    ],
)
def test_what_it_cannot_express_is_not_written(tmp_path, change, said):
    ours = dictionary()
    ours = change(ours) or ours
    with pytest.raises(DialectError) as error:
        DIALECTS.get("patchsae")().write(ours, tmp_path / "new")
    assert said in str(error.value) and not (tmp_path / "new" / "out.pt").exists()
