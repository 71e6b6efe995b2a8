"""Which fields of SAELens' configuration codes depend on, over all its versions, and what is done about others."""

import pytest
import torch
from safetensors.torch import load_file

from tests.interop.make_fixtures import FIXTURES
from tests.interop.test_saelens import UNKNOWN, V6, WEIGHTS, X, edited, refused
from vlsae.interop.load import load_dictionary

V5 = {"sae_lens_version": "5.11.0"}
MISLEADING = {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm", "activation_fn": "topk", "k": 2,
              "architecture": "gated", "d_in": 3, "dtype": "int8", "rescale_acts_by_decoder_norm": True}  # fmt: skip


@pytest.mark.parametrize("case", ["standard", "topk", "old_topk"])
def test_metadata_has_no_part_in_codes(tmp_path, case):
    """SAELens' forward pass reads the top level alone, of every version; `metadata` is for people."""
    version = {} if case == "old_topk" else V6
    read = load_dictionary(edited(tmp_path, case, metadata={**version, **MISLEADING, "seed": 4}), **UNKNOWN)
    plain = load_dictionary(FIXTURES / "saelens" / case, **UNKNOWN)
    assert torch.equal(read.encode(X), plain.encode(X)) and torch.equal(read(X), plain(X))
    assert (read.family, read.settings, read.transform.kind) == (plain.family, plain.settings, plain.transform.kind)
    assert read.metadata["seed"] == 4 and not set(MISLEADING) & set(read.metadata)


@pytest.mark.parametrize("case, change, told", [
    ("standard", {"k": 5}, "k=5"),
    ("jumprelu", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm=True"),
    ("topk", {"input_unit_norm": False, "epsilon": None}, "input_unit_norm=False"),
    ("old_topk", {"activation_fn_kwargs": {"k": 5, "group": 2}}, "activation_fn_kwargs.group=2"),
    ("standard", {"activation_fn_kwargs": {"k": 5}}, "activation_fn_kwargs.k=5"),
])  # fmt: skip
def test_fields_that_no_version_has_for_an_architecture_are_asked_about(tmp_path, case, change, told):
    folder = edited(tmp_path, case, **change)
    refused(folder, "other_fields=...", told, "SAELens 6.54")
    read, plain = load_dictionary(folder, **UNKNOWN, other_fields="ignored"), FIXTURES / "saelens" / case
    assert torch.equal(read.encode(X), load_dictionary(plain, **UNKNOWN).encode(X))
    assert told in read.metadata["notes"][-1]


FIRST = {"is_dataset_tokenized": False, "use_cached_activations": False, "cached_activations_path": "activations",
         "n_batches_in_buffer": 128, "total_training_tokens": 3e8, "store_batch_size": 32, "device": "mps", "seed": 42, "dtype":
         "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 32, "from_pretrained_path": None,
         "l1_coefficient": 8e-5, "lr": 4e-4, "lr_scheduler_name": None, "lr_warm_up_steps": 5000, "train_batch_size": 4096,
         "model_from_pretrained_kwargs": {"center_writing_weights": True}, "use_ghost_grads": False, "feature_sampling_window":
         1000, "feature_sampling_method": None, "resample_batches": 1028, "feature_reinit_scale": 0.2, "dead_feature_window":
         5000, "dead_feature_estimation_method": "no_fire", "dead_feature_threshold": 1e-8, "log_to_wandb": True,
         "wandb_project": "gpt2", "wandb_entity": None, "wandb_log_frequency": 100, "n_checkpoints": 10, "checkpoint_path":
         "checkpoints", "tokens_per_buffer": 67108864, "run_name": "run", "neuronpedia_id": "gpt2-small/0-res-jb",
         "prepend_bos": True, "sae_lens_training_version": None}  # fmt: skip


def test_what_the_first_runs_wrote_opens_without_a_question(tmp_path):
    """The fields of gpt2-small-res-jb, whose whole training lies flat in its configuration."""
    read = load_dictionary(edited(tmp_path, "old_scaling_factor", **FIRST), **UNKNOWN)
    plain = load_dictionary(FIXTURES / "saelens" / "old_scaling_factor", **UNKNOWN)
    assert torch.equal(read.encode(X), plain.encode(X)) and read.metadata["resample_batches"] == 1028


def test_an_activation_that_one_of_two_names_leaves_open(tmp_path):
    """`null` under the newer name does not make ReLU of TopK."""
    assert load_dictionary(edited(tmp_path, "old_topk", activation_fn=None), **UNKNOWN).settings == {"k": 5}


@pytest.mark.parametrize("version, computes", [({}, True), (V5, True), (V6, False)])
def test_topk_in_the_words_of_old_versions_is_none_in_those_of_new_ones(tmp_path, version, computes):
    """Version 6 reads no `activation_fn`: it would compute ReLU codes of such a file."""
    folder = edited(tmp_path, "old_topk", architecture="standard", **version)
    if computes:
        assert load_dictionary(folder, **UNKNOWN).family == "topk"
    else:
        refused(folder, "'standard' with activation_fn='topk'")


def test_what_it_is_saved_as_is_what_counts(tmp_path):
    """And is noted where training was something else; a batch's own form after training is none of it."""
    read = load_dictionary(edited(tmp_path, "standard", metadata=V6 | {"training_architecture": "topk"}), **UNKNOWN)
    assert read.family == "relu" and "Trained as 'topk' but saved as 'standard'" in read.metadata["notes"][0]
    assert "notes" not in load_dictionary(FIXTURES / "saelens" / "matryoshka_finished", **UNKNOWN).metadata


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16"])
def test_half_precision_is_noted_where_it_is_computed_in(tmp_path, dtype):
    """SAELens computes in the type of the configuration, whatever the weights are stored in."""
    note = load_dictionary(edited(tmp_path, "standard", dtype=dtype), **UNKNOWN).metadata["notes"][0]
    assert f"computes in {dtype.removeprefix('torch.')}," in note
    half = {"W_dec": load_file(FIXTURES / "saelens" / "standard" / WEIGHTS)["W_dec"].half()}
    read = load_dictionary(edited(tmp_path, "standard", half, dtype="float32"), **UNKNOWN)
    assert "notes" not in read.metadata and torch.equal(read.W_dec.detach(), half["W_dec"].float())
