"""Both ways with SAELens itself, over every family that both know."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.interop.dictionaries import D, N, filled
from tests.interop.make_fixtures import inputs
from vlsae.interop.dialect import DIALECTS
from vlsae.interop.load import load_dictionary
from vlsae.interop.saelens_config import REFUSED, TENSORS
from vlsae.interop.saelens_fields import ALL, SOME, known
from vlsae.interop.saelens_writing import WRITERS

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("sae_lens")
X = inputs(D, 200, seed=3)
AFFINE = ("centre", "sqrt_d", "centre_sqrt_d", "scalar", "standardise")
UNKNOWN = {"model": "unknown", "site": "unknown"}


def _write(dictionary, folder):
    DIALECTS.get("saelens")().write(dictionary, folder)
    return folder


@torch.no_grad()
def _equal(ours, theirs, x=X):
    """Equal supports, and values to 1e-6 of the largest: the same float32 sums in another order."""
    for mine, other in ((ours.encode(x), theirs.encode(x)), (ours(x), theirs(x))):
        assert (mine - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max()))
    assert torch.equal(ours.encode(x) != 0, theirs.encode(x) != 0)
    assert (ours.encode(x) != 0).any()


CASES = [
    *((family, "none", {}) for family in WRITERS),
    *((family, "centre_sqrt_d", {}) for family in WRITERS if family != "matching_pursuit"),
    *(("jumprelu", kind, {}) for kind in (*AFFINE, "unit", "layer_norm_unbiased")),
    *(("transcoder", kind, {"k": 4}) for kind in ("none", "standardise")),
    *(("matching_pursuit", kind, {}) for kind in ("centre", "layer_norm_unbiased")),
    ("gated", "unit", {}), ("topk", "unit", {}), ("nested_sparsity", "none", {"cut": 4}),
    ("matching_pursuit", "none", {"k": 12, "tol": 1.5, "repeats": False, "at_least": 1}),
    ("matching_pursuit", "none", {"k": 12, "repeats": False}),
]  # fmt: skip


@pytest.mark.parametrize("family, transform, options", CASES)
def test_what_is_written_opens_in_saelens_with_equal_codes(tmp_path, family, transform, options):
    from sae_lens import SAE

    dictionary = filled(family, transform, **options)
    theirs = SAE.load_from_disk(_write(dictionary, tmp_path))
    _equal(dictionary, theirs)
    assert theirs.cfg.metadata.model_name == "open_clip:ViT-B-16/openai"
    assert theirs.cfg.metadata.hook_name == "vision.10.resid_post" and theirs.cfg.metadata.l1 == 0.5
    theirs.save_model(tmp_path / "again")
    back = load_dictionary(tmp_path / "again")
    _equal(back, theirs)
    assert back.metadata["site"] == "vision.10.resid_post"


@pytest.mark.parametrize("family", ["relu", "gated", "topk", "abs_topk", "jumprelu", "matching_pursuit", "batch_topk"])
def test_what_is_written_opens_for_training_too(tmp_path, family):
    from sae_lens import TrainingSAE

    dictionary = filled(family)
    theirs = TrainingSAE.load_from_disk(_write(dictionary, tmp_path))
    _equal(dictionary, theirs)
    theirs.save_model(tmp_path / "again")
    back = load_dictionary(tmp_path / "again")
    _equal(back, theirs)
    assert back.family == ("jumprelu" if family == "batch_topk" else family)  # SAELens trained it on as that


ARCHITECTURES = ["standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("normalise", ["none", "expected_average_only_in", "layer_norm", "constant_norm_rescale",
                                       "covariance_whitening"])  # fmt: skip
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpoints_in_training_give_the_codes_of_the_finished_one(tmp_path, architecture, normalise, subtracts):
    from sae_lens import SAE, TrainingSAE

    from tests.interop.peers.saelens import scaler, small

    sae = small(architecture, training=True, seed=4, normalize_activations=normalise, apply_b_dec_to_input=subtracts)
    sae.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    if normalise == "expected_average_only_in":
        scaler(tmp_path, factor=0.7)
        again.fold_activation_norm_scaling_factor(0.7)
    elif normalise == "covariance_whitening":
        again.fold_activation_whitening(*scaler(tmp_path, whitens=True))
    else:
        scaler(tmp_path)
    again.save_inference_model(tmp_path / "finished")
    theirs = SAE.load_from_disk(tmp_path / "finished")
    mine, read = load_dictionary(tmp_path, **UNKNOWN), load_dictionary(tmp_path / "finished", **UNKNOWN)
    _equal(mine, theirs)
    _equal(read, theirs)
    assert mine.family == read.family and mine.settings == read.settings


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("fields", [{}, {"residual_threshold": 0.8}, {"stop_on_duplicate_support": False},
                                    {"residual_threshold": 0.0, "max_iterations": None}])  # fmt: skip
def test_pursuits_stop_where_theirs_stop(tmp_path, fields, subtracts):
    """From large inputs to some below the threshold, at which theirs takes one step."""
    from sae_lens import SAE

    from tests.interop.peers.saelens import small

    sae = small("matching_pursuit", apply_b_dec_to_input=subtracts, **fields)
    sae.save_model(tmp_path)
    ours, theirs = load_dictionary(tmp_path, **UNKNOWN), SAE.load_from_disk(tmp_path)
    x = X * torch.logspace(-2, 0.5, len(X))[:, None] + (theirs.b_dec.detach() if subtracts else 0)
    _equal(ours, theirs, x)


def test_a_scaled_pursuit_in_training_keeps_its_scale(tmp_path):
    """SAELens' own fold would stretch the atoms of its tied encoder; the codes are those of a training step."""
    from sae_lens import TrainingSAE

    from tests.interop.peers.saelens import scaler, small

    small("matching_pursuit", training=True, normalize_activations="expected_average_only_in").save_model(tmp_path)
    scaler(tmp_path, factor=0.7)
    theirs = TrainingSAE.load_from_disk(tmp_path)
    ours = load_dictionary(tmp_path, **UNKNOWN)
    assert (ours.encode(X) - theirs.encode(0.7 * X)).abs().max() <= 1e-5
    assert (ours(X) - theirs(0.7 * X) / 0.7).abs().max() <= 1e-5


def test_gemma_scope_both_ways(tmp_path):
    """Written arrays through SAELens' loader of Gemma Scope."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    for family in ("jumprelu", "batch_topk", "nested_dictionary", "gated", "relu", "tied", "crosscoder", "transcoder"):
        for kind in ("none", "standardise"):
            dictionary = filled(family, kind)
            DIALECTS.get("gemma_scope")().write(dictionary, tmp_path)
            with np.load(tmp_path / "params.npz") as data:
                weights = {name: torch.from_numpy(data[name]) for name in data}
            config = loaders.get_gemma_2_config_from_hf("google/gemma-scope-2b-pt-res", "layer_20/width_16k", "cpu",
                                                        cfg_overrides={"d_in": D, "d_sae": N})  # fmt: skip
            theirs = SAE.load_from_disk(tmp_path, converter=lambda *_, cfg=config, w=weights, **__: (cfg, w))
            _equal(dictionary, theirs)
            _equal(load_dictionary(tmp_path, **UNKNOWN), theirs)


def test_all_families_that_are_written_are_named_in_the_configuration(tmp_path):
    for family in WRITERS:
        config = json.loads((_write(filled(family), tmp_path) / "cfg.json").read_text())
        assert config["metadata"]["vlsae_family"]["family"] == family


def _names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_architecture_that_is_registered_is_read_or_refused_by_name():
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    assert {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY} == {*TENSORS, *REFUSED}
    assert not set(TENSORS) & set(REFUSED)


def test_every_field_that_is_registered_is_known():
    """A field for inference is read; one of training, of the run or of the origin raises no question."""
    from sae_lens.config import LanguageModelSAERunnerConfig
    from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    for name, (_, config) in SAE_CLASS_REGISTRY.items():
        assert name in REFUSED or _names(config) - {"device"} <= ALL | SOME.get(name, set())
    for name, (_, config) in SAE_TRAINING_CLASS_REGISTRY.items():
        assert _names(config) <= known(name)
    assert _names(LanguageModelSAERunnerConfig) | LLM_METADATA_KEYS <= known("standard")


@pytest.mark.parametrize("fields", [{"device": "cpu"}, {"dtype": "float32"}, {"dtype": "float64"}])
def test_what_is_written_opens_in_other_types(tmp_path, fields):
    """In double precision sums differ by the rounding of ours, 1e-6 of the largest value."""
    from sae_lens import SAE

    dictionary = filled("jumprelu", "standardise")
    theirs = SAE.load_from_disk(_write(dictionary, tmp_path), **fields)
    assert str(theirs.W_dec.dtype) == f"torch.{fields.get('dtype', 'float32')}"
    with torch.no_grad():
        for ours, other in ((dictionary.encode(X), theirs.encode(X)), (dictionary(X), theirs(X))):
            assert (ours - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("version", ["6.54.12", None])
def test_theirs_reads_codes_from_the_top_level_alone_as_ours_does(tmp_path, version):
    """Of new files and, for want of a version, of old ones."""
    from sae_lens import SAE

    from tests.interop.peers.saelens import small

    small("topk").save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"] = {
        "sae_lens_version": version,
        "k": 2,
        "apply_b_dec_to_input": False,
        "architecture": "standard",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    _equal(load_dictionary(tmp_path, **UNKNOWN), SAE.load_from_disk(tmp_path))
