"""SAELens' folders and Gemma Scope's arrays: what is asked, what is refused, and what survives being written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.dictionaries import D, N, filled
from tests.interop.make_fixtures import FIXTURES, inputs
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.saelens_config import REFUSED
from vlsae.interop.saelens_writing import WRITERS
from vlsae.interop.source import Source

X = inputs(D, 100, seed=3)
UNKNOWN = {"model": "unknown", "site": "unknown"}
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
V6 = {"sae_lens_version": "6.54.12"}


def edited(folder: Path, case: str, tensors=None, drop=(), **config) -> Path:
    """A copy of a checkpoint of SAELens with other fields and tensors."""
    shutil.copytree(FIXTURES / "saelens" / case, folder, dirs_exist_ok=True)
    fields = json.loads((folder / CONFIG).read_text()) | config
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in fields.items() if name not in drop}))
    weights = load_file(folder / WEIGHTS) | (tensors or {})
    save_file({name: value for name, value in weights.items() if name not in drop}, folder / WEIGHTS)
    return folder


def refused(folder: Path, *words: str, **answers) -> None:
    with pytest.raises(DialectError) as error:
        load_dictionary(folder, **UNKNOWN | answers)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_hook_of_a_language_model_is_no_site_of_ours(tmp_path):
    """Asked for, with what the file says; the file's own names stay beside the answer."""
    with pytest.raises(DialectError, match=r"model=\.\.\..*gpt2-small(?s:.*)site=\.\.\..*hook_resid_pre.*width 8"):
        load_dictionary(FIXTURES / "saelens" / "standard")
    read = load_dictionary(FIXTURES / "saelens" / "standard", model="hf:gpt2", site="text.8.resid_pre")
    assert (read.metadata["model"], read.metadata["site"]) == ("hf:gpt2", "text.8.resid_pre")
    assert (read.metadata["model_name"], read.metadata["hook_name"]) == ("gpt2-small", "blocks.8.hook_resid_pre")
    assert read.metadata["context_size"] == 128
    named = {"model_name": "open_clip:ViT-B-16/openai", "hook_name": "vision.10.resid_post"}
    told = load_dictionary(edited(tmp_path, "standard", metadata=named))
    assert (told.metadata["model"], told.metadata["site"]) == (named["model_name"], named["hook_name"])


def test_a_scale_that_no_file_tells_is_asked_for(tmp_path):
    """Doubling it doubles what the encoder multiplies raw inputs with, and halves reconstructions."""
    folder = edited(tmp_path, "standard", normalize_activations="expected_average_only_in")
    refused(folder, "scale=...", "activation_scaler.json", "mean norm")
    plain = load_dictionary(FIXTURES / "saelens" / "standard", **UNKNOWN)
    scaled = load_dictionary(folder, scale=2.0, **UNKNOWN)
    assert torch.allclose(scaled.encode(X), plain.encode(2 * X), atol=1e-5)
    assert torch.allclose(scaled(X), plain(2 * X) / 2, atol=1e-5)
    assert "multiplied by 2" in scaled.metadata["notes"][0]
    refused(folder, "scale=-1.0 is no answer", "finite number, at least 1e-30", scale=-1.0)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    assert torch.allclose(load_dictionary(folder, **UNKNOWN).encode(X), plain.encode(X / 2), atol=1e-5)
    refused(folder, "scale=0.5", "you say 2.0", scale=2.0)


@pytest.mark.parametrize("case, scaler, words", [
    ("standard", {"scaling_factor": 3.0}, ("contradict", "normalize_activations='none'")),
    ("standard", {"scaling_factor": None, "has_whitening": True}, ("contradict", "normalize_activations='none'")),
    ("gated_whitened", {"scaling_factor": None, "has_whitening": False}, ("contradict", "'covariance_whitening'")),
    ("standard", {"has_whitening": "no"}, ("has_whitening of activation_scaler.json is 'no'",)),
    ("standard", {"scaling_factor": "3"}, ("scaling_factor of activation_scaler.json is '3'",)),
])  # fmt: skip
def test_a_scaler_that_the_configuration_denies_is_a_contradiction(tmp_path, case, scaler, words):
    folder = edited(tmp_path, case)
    (folder / "activation_scaler.json").write_text(json.dumps(scaler))
    refused(folder, *words)


def test_whitening_needs_its_file_whole(tmp_path):
    folder = edited(tmp_path, "gated_whitened")
    side = folder / "activation_whitening.safetensors"
    damaged = load_file(side)
    save_file({**damaged, "inverse_matrix": damaged["inverse_matrix"].T.contiguous()}, side)
    refused(folder, "not the inverse")
    save_file({"mean": damaged["mean"]}, side)
    refused(folder, "inverse_matrix")
    side.unlink()
    refused(folder, "whitened", "lacks")


@pytest.mark.parametrize("case, change, words", [
    ("standard", {"architecture": "temporal"}, ("temporal", "tokens before")),
    ("standard", {"architecture": "skip_transcoder"}, ("skip_transcoder", "linear map")),
    ("standard", {"architecture": "jumprelu_skip_transcoder"}, ("linear map",)),
    ("standard", {"architecture": "perceptron"}, ("perceptron", "batchtopk")),
    ("standard", {"architecture": ["standard"]}, ("architecture", "expected one of")),
    ("standard", {"architecture": "gated"}, ("misses b_gate, b_mag, r_mag", "b_enc")),
    ("gated", {"architecture": "standard"}, ("misses b_enc", "b_gate")),
    ("standard", {"activation_fn": "tanh-relu"}, ("tanh-relu", "No family")),
    ("jumprelu", {"activation_fn_str": "topk"}, ("topk", "jumprelu")),
    ("standard", {"normalize_activations": "rms"}, ("normalize_activations is 'rms'", "layer_norm")),
    ("standard", {"normalize_activations": 3}, ("normalize_activations is '3'",)),
    ("standard", {"reshape_activations": "heads"}, ("reshape_activations", "hook_z")),
    ("standard", {"apply_b_dec_to_input": "no"}, ("apply_b_dec_to_input is 'no'", "true or false")),
    ("standard", {"d_in": 16}, ("d_in, d_sae = [16, 24]", "[8, 24]")),
    ("standard", {"d_sae": 24.5}, ("d_sae is '24.5'", "whole")),
    ("standard", {"d_in": None}, ("d_in, d_sae = [None, 24]",)),
    ("topk", {"k": "many"}, ("k is 'many'", "finite number")),
    ("topk", {"k": 2.5}, ("k is '2.5'", "whole number")),
    ("topk", {"k": 25}, ("k=25 must lie between 1 and n_latents=24",)),
    ("topk", {"k": 0}, ("k is '0'",)),
    ("topk", {"k": 10**30}, ("'k': 1000", "larger than the weights")),
    ("topk", {"k": float("nan")}, ("k is 'nan'",)),
    ("topk", {"k": True}, ("k is 'True'",)),
    ("topk", {"activation_fn_kwargs": {"k": 6}}, ("k is '5 and 6'", "the same in all places")),
    ("batchtopk_training", {"k": 6.0}, ("k is '6.0 and 4.0'", "the same in all places")),
    ("topk", {"activation_fn_kwargs": [5]}, ("activation_fn_kwargs is '[5]'", "by their names")),
    ("old_topk", {"activation_fn_kwargs": {"k": 5, "postact_fn": "tanh"}}, ("postact_fn is 'tanh'", "rectified")),
    ("old_topk", {"activation_fn": "relu"}, ("activation_fn is 'relu and topk'", "the same")),
    ("old_topk", {"architecture": "topk", "activation_fn_str": "relu"}, ("'topk' with activation_fn='relu'",)),
    ("standard", {"activation_fn": "topk", "k": 5}, ("'standard' with activation_fn='topk'", "before version 6")),
    ("standard", {"metadata": [1]}, ("metadata is '[1]'", "by their names")),
    ("standard", {"dtype": "int8"}, ("dtype is 'int8'", "float32")),
    ("transcoder", {"d_out": 16}, ("d_out is '16'", "8, by the shape")),
    ("matryoshka_batchtopk_training", {"matryoshka_widths": [8, 4, 24], "metadata": V6}, ("prefixes", "must rise")),
    ("matryoshka_batchtopk_training", {"matryoshka_widths": "all"}, ("matryoshka_widths is 'all'", "list")),
    ("matryoshka_batchtopk_training", {"matryoshka_widths": [], "metadata": V6}, ("matryoshka_widths is 'None'",)),
    ("matryoshka_batchtopk_training", {"matryoshka_widths": [8, 24]}, ("[8, 24] and [6, 14, 24]", "the same")),
    ("matching_pursuit", {"max_iterations": 25}, ("k=25",)),
    ("matching_pursuit", {"residual_threshold": -1}, ("residual_threshold",)),
    ("matching_pursuit", {"normalize_activations": "constant_norm_rescale"}, ("no pursuit over these atoms",)),
    ("transcoder", {"normalize_activations": "layer_norm"}, ("transcoder behind 'layer_norm'",)),
    ("transcoder", {"apply_b_dec_to_input": True}, ("apply_b_dec_to_input", "bias of a transcoder")),
])  # fmt: skip
def test_what_the_configuration_says_is_held_to_sense(tmp_path, case, change, words):
    refused(edited(tmp_path, case, **change), *words)


@pytest.mark.parametrize("case, tensors, words", [
    ("standard", {"W_skip": torch.ones(D, D)}, ("also has W_skip",)),
    ("standard", {"W_enc": torch.ones(N, D)}, ("W_enc has shape [24, 8]", "[8, 24]")),
    ("standard", {"W_dec": torch.ones(N)}, ("W_dec has shape [24]",)),
    ("standard", {"b_dec": torch.full((D,), torch.nan)}, ("b_dec holds NaN",)),
    ("batchtopk_training", {"topk_threshold": torch.ones(3)}, ("topk_threshold has shape [3]",)),
    ("transcoder", {"W_dec": torch.ones(N, 5), "b_dec": torch.ones(5)}, ("width (8,)", "width 5", "equal widths")),
    ("matching_pursuit", {"W_dec": torch.ones(N, D)}, ("norm 2.83 to 2.83", "no projections")),
    ("standard", {"scaling_factor": torch.full((N,), 2.0)}, ("finetuning_scaling_factor",)),
])  # fmt: skip
def test_tensors_are_held_to_the_architecture(tmp_path, case, tensors, words):
    refused(edited(tmp_path, case, tensors), *words)


def test_k_is_asked_for_where_it_is_missing(tmp_path):
    folder = edited(tmp_path, "topk", drop=("k",))
    refused(folder, "k=...")
    for answer in (2.5, 25, "7", True):
        refused(folder, f"k={answer!r} is no answer", "whole number, at least 1 and at most 24", k=answer)
    assert load_dictionary(folder, k=7, **UNKNOWN).k == 7
    of_a_batch = edited(tmp_path / "batch", "batchtopk_training", drop=("k",), metadata=V6)
    assert load_dictionary(of_a_batch, k=3.6, **UNKNOWN).k == 4


def test_fine_tuned_factors_stretch_the_decoder_and_leave_codes(tmp_path):
    """SAELens before 6 multiplied codes on their way out; 6 does not open such files."""
    factors = 1 + torch.rand(N)
    folder = edited(tmp_path, "standard", {"scaling_factor": factors}, finetuning_scaling_factor=True)
    plain, tuned = load_dictionary(FIXTURES / "saelens" / "standard", **UNKNOWN), load_dictionary(folder, **UNKNOWN)
    z = plain.encode(X)
    assert torch.equal(tuned.encode(X), z)
    assert torch.allclose(tuned(X), (z * factors) @ plain.W_dec + plain.b_dec, atol=1e-5)


def test_normalisation_was_a_boolean_once(tmp_path):
    refused(edited(tmp_path / "on", "old_topk", normalize_activations=True), "scale=...")
    off = edited(tmp_path / "off", "old_topk", normalize_activations=False)
    assert load_dictionary(off, **UNKNOWN).transform.kind == "none"


def test_heads_side_by_side_are_noted(tmp_path):
    assert (
        "heads"
        in load_dictionary(edited(tmp_path, "standard", reshape_activations="hook_z"), **UNKNOWN).metadata["notes"][0]
    )
    old = edited(tmp_path / "old", "old_topk", hook_point="blocks.8.attn.hook_z")
    assert "heads" in load_dictionary(old, **UNKNOWN).metadata["notes"][0]


def test_what_batches_leave_behind_is_noted(tmp_path):
    """A k that is not whole plays no part in codes; a threshold of 0 is a dictionary before training."""
    zero = {"topk_threshold": torch.zeros((), dtype=torch.float64)}
    folder = edited(tmp_path, "batchtopk_training", zero, k=2.5, metadata=V6)
    read = load_dictionary(folder, **UNKNOWN)
    assert read.k == 2 and [note.split()[0] for note in read.metadata["notes"]] == ["Trained", "Its"]


def test_thresholds_below_zero_cut_at_zero(tmp_path):
    read = load_dictionary(edited(tmp_path, "jumprelu", {"threshold": torch.full((N,), -1.0)}), **UNKNOWN)
    assert torch.equal(read.encode(X), torch.relu(read.pre(X))) and "negative" in read.metadata["notes"][0]


def test_an_inference_save_that_forgot_its_widths_is_a_batch_topk_one(tmp_path):
    config = json.loads((FIXTURES / "saelens" / "matryoshka_finished" / CONFIG).read_text())
    details = {"k": 4.0}
    folder = edited(
        tmp_path, "matryoshka_finished", metadata={**config["metadata"], "training_architecture_details": details}
    )
    assert load_dictionary(folder, **UNKNOWN).family == "batch_topk"


def test_names_of_our_own_in_their_metadata_do_not_reach_ours(tmp_path):
    """A file cannot set what our folders rely on."""
    folder = edited(
        tmp_path, "standard", metadata={"family": "topk", "schema": 9, "notes": 3, "opened_from": "here", "seed": 1}
    )
    read = load_dictionary(folder, **UNKNOWN)
    again = load_dictionary(read.save(tmp_path / "ours"))
    assert (
        torch.equal(again.encode(X), read.encode(X)) and again.metadata["seed"] == 1 and "notes" not in again.metadata
    )


@pytest.mark.parametrize(
    "content", ["{}", '{"d_in": 8, "d_sae": 24}', '{"metadata": 3}', '{"metadata": {"vlsae": {}}}']
)
def test_others_folders_are_not_taken_for_theirs(tmp_path, content):
    save_file({"encoder.weight": torch.ones(N, D)}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(content)
    assert not DIALECTS.get("saelens")().sniff(Source(tmp_path))


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_refused_architectures_are_recognised(tmp_path, architecture):
    save_file({"D": torch.ones(N, D)}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"d_in": D, "d_sae": N, "architecture": architecture}))
    refused(tmp_path, architecture, "no family")


def _written(dictionary, folder, dialect="saelens"):
    DIALECTS.get(dialect)().write(dictionary, folder)
    return folder


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_written_folders_are_read_with_equal_codes(tmp_path, family):
    """Behind a fixed transform where pursuit allows it; 1e-6 of the largest value, as float32 sums do."""
    dictionary = filled(family, "centre" if family == "matching_pursuit" else "standardise")
    read = load_dictionary(_written(dictionary, tmp_path))
    with torch.no_grad():
        for ours, theirs in ((dictionary.encode(X), read.encode(X)), (dictionary(X), read(X))):
            assert (ours - theirs).abs().max() <= 2e-6 * float(ours.abs().max())
    assert {name: read.metadata[name] for name in dictionary.metadata} == dictionary.metadata
    assert read.metadata["vlsae_family"] == {"family": family, "settings": dictionary.settings}
    same = (
        "relu",
        "topk",
        "jumprelu",
        "gated",
        "abs_topk",
        "batch_topk",
        "nested_dictionary",
        "transcoder",
        "matching_pursuit",
    )
    assert family not in same or (read.family == family and read.settings == dictionary.settings)


def test_a_checkpoint_keeps_what_it_said_through_us(tmp_path):
    """Read, written and read again: SAELens' own facts are all there, and nothing is folded twice."""
    first = load_dictionary(FIXTURES / "saelens" / "batchtopk_scaled_raw", **UNKNOWN)
    second = load_dictionary(_written(first, tmp_path), **UNKNOWN)
    assert torch.equal(first.encode(X), second.encode(X)) and first.settings == second.settings
    for name in ("model_name", "hook_name", "context_size", "training_architecture"):
        assert second.metadata[name] == first.metadata[name]


@pytest.mark.parametrize("family, transform, options, why", [
    ("spade", "none", {}, "no architecture for 'spade'"),
    ("switch", "none", {"k": 2}, "no architecture"),
    ("feed_forward", "none", {}, "no architecture"),
    ("relu", "layer_norm", {}, "another deviation"),
    ("transcoder", "unit", {}, "output of no transcoder"),
    ("matching_pursuit", "sqrt_d", {}, "fold_transform"),
    ("matching_pursuit", "unit", {}, "multiplies the codes"),
    ("matching_pursuit", "none", {"tol": 0.5}, "at_least=1"),
    ("matching_pursuit", "none", {"nonnegative": False}, "positive correlations"),
    ("matching_pursuit", "none", {"orthogonal": True}, "fit again"),
])  # fmt: skip
def test_what_saelens_cannot_express_is_refused(tmp_path, family, transform, options, why):
    with pytest.raises(DialectError, match=why):
        _written(filled(family, transform, **options), tmp_path)
    assert not (tmp_path / CONFIG).exists()


@pytest.mark.parametrize(
    "family", ["jumprelu", "batch_topk", "nested_dictionary", "gated", "relu", "tied", "transcoder"]
)
def test_gemma_scope_is_written_and_read_with_equal_codes(tmp_path, family):
    dictionary = filled(family, "centre_sqrt_d")
    read = load_dictionary(_written(dictionary, tmp_path, "gemma_scope"), **UNKNOWN)
    with torch.no_grad():
        for ours, theirs in ((dictionary.encode(X), read.encode(X)), (dictionary(X), read(X))):
            assert (ours - theirs).abs().max() <= 2e-6 * float(ours.abs().max())


@pytest.mark.parametrize("family, transform, options", [
    ("topk", "none", {}), ("jumprelu", "unit", {}), ("nested_sparsity", "none", {"cut": 3}), ("transcoder", "none", {"k": 3}),
])  # fmt: skip
def test_gemma_scope_holds_thresholds_on_raw_activations_alone(tmp_path, family, transform, options):
    with pytest.raises(DialectError, match="cannot be written as Gemma Scope"):
        _written(filled(family, transform, **options), tmp_path, "gemma_scope")


def test_gemma_scope_tells_no_model_and_its_shapes_must_fit(tmp_path):
    folder = tmp_path / "layer_20" / "width_16k"
    _written(filled("jumprelu"), folder, "gemma_scope")
    with pytest.raises(DialectError, match=r"model=(?s:.*)site=.*layer_20"):
        load_dictionary(folder / "params.npz")
    arrays = dict(np.load(folder / "params.npz"))
    for name, value, words in (("W_enc", np.ones((N, D)), "W_enc has shape"), ("b_dec", np.ones(3), "biases"),
                               ("threshold", np.ones(3), "threshold is")):  # fmt: skip
        np.savez(folder / "params.npz", **{**arrays, name: value.astype(np.float32)})
        refused(folder, words)
    np.savez(folder / "params.npz", **{name.lower(): value for name, value in arrays.items()})
    assert load_dictionary(folder, **UNKNOWN).family == "jumprelu"  # the 9b files write w_enc


def test_gemma_scope_is_five_arrays_whoever_says_it_is_more(tmp_path):
    """A layer norm in a configuration, or a skip connection, would be lost."""
    refused(
        FIXTURES / "saelens" / "layer_norm",
        "is a checkpoint of SAELens and would be read wrongly",
        dialect="gemma_scope",
    )
    np.savez(tmp_path / "params.npz", W_skip=np.ones((D, D)))
    refused(tmp_path, "holds W_skip; expected", dialect="gemma_scope")
