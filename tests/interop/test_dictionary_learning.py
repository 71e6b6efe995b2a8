"""The dialect dictionary_learning: what is asked, what is refused, and what is written."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.interop.make_fixtures import inputs
from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.transform import InputTransform
from vlsae.interop.dialect import DIALECTS, DialectError
from vlsae.interop.load import load_dictionary
from vlsae.interop.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "dictionary_learning"
UNKNOWN = {"model": "unknown", "site": "unknown"}
D, N = 6, 12


@pytest.fixture
def copied(tmp_path):
    """A fixture that may be changed: its folder, and a function that changes the trainer's facts."""

    def copy(name):
        folder = tmp_path / name
        shutil.copytree(FIXTURES / name, folder)

        def change(**facts):
            config = json.loads((folder / "config.json").read_text())
            config["trainer"] |= facts
            (folder / "config.json").write_text(json.dumps(config))

        return folder, change

    return copy


def tensors(folder, weights="ae.pt"):
    return torch.load(folder / weights)


def made(family, **settings):
    """A dictionary of ours with no bias at zero and atoms of unequal norm."""
    dictionary = DICTIONARIES.get(family)(D, N, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if hasattr(dictionary, "threshold"):
            dictionary.threshold.fill_(0.8)
    return dictionary


OURS = {"relu": {}, "gated": {}, "jumprelu": {}, "topk": {"k": 3}, "batch_topk": {"k": 3},
        "nested_dictionary": {"k": 3, "prefixes": [3, 5, 12]}}  # fmt: skip


def test_everything_that_a_language_model_file_leaves_open_is_asked_in_one_error():
    with pytest.raises(DialectError) as caught:
        load_dictionary(FIXTURES / "AutoEncoder")
    message = str(caught.value)
    assert "model=" in message and "pythia-70m" in message
    assert (
        "site=" in message and "resid_post_layer_3, layer 3" in message
    )  # a block of an LLM is none of a vision tower


def test_sae_for_vlm_is_asked_for_its_place_and_told_the_folder(tmp_path):
    name = "imagenet_train_activations_clip-vit-large-patch14-336_22_post_mlp_residual_matroyshka_batch_top_k_20_x64"
    shutil.copytree(FIXTURES / "sae_for_vlm_MatryoshkaBatchTopKSAE", tmp_path / name)
    with pytest.raises(DialectError, match="where in the model .*imagenet_train_activations_clip-vit-large"):
        load_dictionary(tmp_path / name / "ae_100000.pt")
    dictionary = load_dictionary(tmp_path / name / "ae_100000.pt", model="hf:openai/clip-vit-large-patch14-336",
                                 site="vision.22.resid_post")  # fmt: skip
    assert dictionary.metadata["site"] == "vision.22.resid_post"
    assert dictionary.prefixes == [3, 9, 24]  # group sizes 3, 6 and 15 are widths, prefixes their sums


def test_what_the_trainer_says_is_kept():
    metadata = load_dictionary(FIXTURES / "BatchTopKSAE", **UNKNOWN).metadata
    assert metadata["model"] is metadata["site"] is None
    assert metadata["trainer"]["lm_name"] == "EleutherAI/pythia-70m-deduped" and metadata["buffer"]["io"] == "out"
    assert metadata["opened_from"] == {"dialect": "dictionary_learning", "file": "ae.pt"}


def test_a_state_dict_of_two_possible_classes_asks_which(tmp_path):
    folder = FIXTURES / "state_dict_AutoEncoderTopK"
    with pytest.raises(DialectError, match="dict_class=.*AutoEncoderTopK or BatchTopKSAE"):
        load_dictionary(folder)
    x = inputs(8)
    topk = load_dictionary(folder, dict_class="AutoEncoderTopK", **UNKNOWN)
    batch = load_dictionary(folder, dict_class="BatchTopKSAE", **UNKNOWN)
    assert int((topk.encode(x) > 0).sum(1).max()) == 3 < int((batch.encode(x) > 0).sum(1).max())
    assert "threshold 1.5 plays no part" in topk.metadata["notes"][0]
    with pytest.raises(DialectError, match="GatedAutoEncoder"):
        load_dictionary(folder, dict_class="GatedAutoEncoder", **UNKNOWN)


def test_a_threshold_that_was_never_set_is_asked():
    with pytest.raises(DialectError, match="threshold=.*which the file does not have"):
        load_dictionary(FIXTURES / "checkpoint" / "checkpoints", **UNKNOWN)
    for wrong in (-1.0, "high", True, float("inf")):
        with pytest.raises(DialectError, match="at least 0"):
            load_dictionary(FIXTURES / "checkpoint" / "checkpoints", threshold=wrong, **UNKNOWN)


def test_k_of_an_older_file_comes_from_its_configuration_or_the_user(copied):
    folder, _ = copied("AutoEncoderTopK")
    kept = {k: v for k, v in tensors(folder).items() if k not in ("k", "threshold")}
    torch.save(kept, folder / "ae.pt")
    assert load_dictionary(folder, **UNKNOWN).k == 3
    (folder / "config.json").unlink()
    with pytest.raises(DialectError, match="(?s)dict_class=.*k=.*active latents a token"):
        load_dictionary(folder)
    assert load_dictionary(folder, dict_class="AutoEncoderTopK", k=5, **UNKNOWN).k == 5


@pytest.mark.parametrize("facts, words", [
    ({"k": 4}, r"say k=\[3, 4\]"), ({"k": "3"}, "whole number"), ({"k": True}, "whole number"),
    ({"activation_dim": 24}, "activation_dim=8"), ({"dict_size": "24"}, "dict_size=24"),
    ({"dict_class": "GatedAutoEncoder"}, "are those of AutoEncoderTopK or BatchTopKSAE"),
    ({"dict_class": "IdentityDict"}, "expected one of AutoEncoder"), ({"dict_class": ["x"]}, "no known dialect|expected one"),
])  # fmt: skip
def test_a_configuration_that_disagrees_is_refused(copied, facts, words):
    folder, change = copied("AutoEncoderTopK")
    change(**facts)
    with pytest.raises(DialectError, match=words):
        load_dictionary(folder, dialect="dictionary_learning", **UNKNOWN)


def test_answers_that_contradict_the_file_are_refused():
    with pytest.raises(DialectError, match="says k=3, you say 5"):
        load_dictionary(FIXTURES / "BatchTopKSAE", k=5, **UNKNOWN)
    with pytest.raises(DialectError, match="says dict_class='BatchTopKSAE'"):
        load_dictionary(FIXTURES / "BatchTopKSAE", dict_class="AutoEncoderTopK", **UNKNOWN)
    with pytest.raises(DialectError, match="takes no threshold"):
        load_dictionary(FIXTURES / "AutoEncoder", threshold=1.0, **UNKNOWN)


def test_a_turned_decoder_is_refused_and_a_square_one_is_read_as_stored(copied):
    """The fixture square_AutoEncoder holds the reader to the library's codes; here, that a turn would be another file."""
    folder, _ = copied("AutoEncoder")
    torch.save(tensors(folder) | {"decoder.weight": tensors(folder)["decoder.weight"].T}, folder / "ae.pt")
    with pytest.raises(DialectError, match=r"decoder.weight \[24, 8\]; expected"):
        load_dictionary(folder, **UNKNOWN)
    square, _ = copied("square_AutoEncoderTopK")
    stored = tensors(square)
    dictionary = load_dictionary(square, **UNKNOWN)
    assert torch.equal(dictionary.W_dec, stored["decoder.weight"].T) and torch.equal(
        dictionary.W_enc, stored["encoder.weight"].T
    )
    assert not torch.equal(dictionary.W_dec, dictionary.W_dec.T)


def test_unit_norm_is_given_to_atoms_as_the_loader_does_and_said():
    stored = tensors(FIXTURES / "AutoEncoder")
    dictionary = load_dictionary(FIXTURES / "AutoEncoder", **UNKNOWN)
    assert (dictionary.W_dec.norm(dim=1) - 1).abs().max() <= 1e-6
    assert not torch.allclose(stored["decoder.weight"].norm(dim=0), torch.ones(24), atol=0.1)
    assert "unit norm" in dictionary.metadata["notes"][0]


def test_group_sizes_must_be_sizes(copied):
    folder, change = copied("MatryoshkaBatchTopKSAE")
    change(group_sizes=[1, 23])
    with pytest.raises(DialectError, match=r"group_sizes=\[3, 6, 15\]"):
        load_dictionary(folder, **UNKNOWN)
    for sizes in ([3, 0, 21], [3, 22]):
        torch.save(
            tensors(FIXTURES / "MatryoshkaBatchTopKSAE") | {"group_sizes": torch.tensor(sizes)}, folder / "ae.pt"
        )
        with pytest.raises(DialectError, match="whole numbers from 1|prefixes="):
            load_dictionary(folder, **UNKNOWN)


@pytest.mark.parametrize("name, weights, recognised", [
    ("ae.pt", ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"), True),
    ("weights.pt", ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"), False),  # any autoencoder's names
    ("ae_500.pt", ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), True),
    ("sae.pt", ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), False),
    ("ae.pt", ("W_enc", "b_enc", "W_dec", "b_dec"), False),
    ("sae.pt", ("bias", "encoder.weight", "encoder.bias", "decoder.weight"), True),
])  # fmt: skip
def test_names_that_others_use_too_count_only_in_its_own_files(tmp_path, name, weights, recognised):
    torch.save({key: torch.zeros(2, 2) for key in weights}, tmp_path / name)
    assert DIALECTS.get("dictionary_learning")().sniff(Source(tmp_path / name)) is recognised


@pytest.mark.parametrize("config", [{"trainer": 3}, {"trainer": {"dict_class": 5}}, {}, {"trainer": None, "k": []}])
def test_strange_configurations_are_passed_over(tmp_path, config):
    torch.save({"W_enc": torch.zeros(2, 2)}, tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not DIALECTS.get("dictionary_learning")().sniff(Source(tmp_path))


@pytest.mark.parametrize("family", OURS)
def test_what_is_written_is_read_again(tmp_path, family):
    """1e-6 of the largest value: a bias is folded in double precision and rounded once on each way."""
    dictionary = made(family, **OURS[family])
    dictionary.metadata |= {"model": "open_clip:ViT-B-16/openai", "site": "vision.-2.resid_post"}
    DIALECTS.get("dictionary_learning")().write(dictionary, tmp_path / "out")
    again = load_dictionary(tmp_path / "out")  # nothing has to be said
    assert (again.metadata["model"], again.metadata["site"]) == ("open_clip:ViT-B-16/openai", "vision.-2.resid_post")
    assert again.family == family and again.settings.get("prefixes") == dictionary.settings.get("prefixes")
    x = inputs(D, 64)
    z = dictionary.encode(x)
    assert 0 < int((z > 0).sum()) < z.numel() and torch.equal(again.encode(x) > 0, z > 0)
    assert (again.encode(x) - z).abs().max() <= 1e-6 * z.abs().max()
    assert (again(x) - dictionary(x)).abs().max() <= 2e-6 * dictionary(x).abs().max()


def test_atoms_of_unequal_norm_go_into_the_class_that_keeps_them(tmp_path):
    """AutoEncoder's loader would multiply the codes by the atoms' norms."""
    dictionary = made("relu")
    for kind, norm in (("AutoEncoderNew", False), ("AutoEncoder", True)):
        if norm:
            dictionary.normalise_atoms()
        DIALECTS.get("dictionary_learning")().write(dictionary, tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"] == kind


def test_an_affine_transform_is_folded_and_the_original_left_alone(tmp_path):
    dictionary = made("relu")
    dictionary.transform = InputTransform.fit(inputs(D), "centre_sqrt_d")
    before = dictionary.b_dec.clone()
    DIALECTS.get("dictionary_learning")().write(dictionary, tmp_path)
    x = inputs(D, 64)
    again = load_dictionary(tmp_path, **UNKNOWN)
    assert torch.equal(dictionary.b_dec, before) and again.transform.kind == "none"
    assert (again(x) - dictionary(x)).abs().max() <= 2e-6 * dictionary(x).abs().max()


def test_what_the_library_cannot_compute_is_not_written(tmp_path):
    write = DIALECTS.get("dictionary_learning")().write
    with pytest.raises(DialectError, match="no class for the family 'abs_topk'"):
        write(made("abs_topk", k=3), tmp_path / "a")
    layer_norm = made("topk", k=3)
    layer_norm.transform = InputTransform(D, "layer_norm")
    with pytest.raises(DialectError, match="no input transforms"):
        write(layer_norm, tmp_path / "a")
    uneven = made("batch_topk", k=3)
    uneven.threshold[0] = 2.0
    with pytest.raises(DialectError, match="one threshold for all latents"):
        write(uneven, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("field", [{"rectify": False}, {"norm_factor": 28.3}, {"apply_b_dec_to_input": False}])
def test_a_field_of_the_trainer_that_no_version_has_is_asked(copied, field):
    """`norm_factor` is computed by all versions and written by none: biases are scaled back instead."""
    folder, change = copied("AutoEncoderTopK")
    change(**field)
    with pytest.raises(DialectError, match=f"other_fields=.*{next(iter(field))}=.*ignored"):
        load_dictionary(folder, **UNKNOWN)
    dictionary = load_dictionary(folder, **UNKNOWN, other_fields="ignored")
    assert any(next(iter(field)) in note for note in dictionary.metadata["notes"])
    assert torch.equal(dictionary.W_enc, load_dictionary(FIXTURES / "AutoEncoderTopK", **UNKNOWN).W_enc)


def test_whether_b_dec_is_taken_off_is_true_or_false(copied):
    folder, change = copied("JumpReluAutoEncoder")
    change(apply_b_dec_to_input=True)
    x = inputs(8)
    said = load_dictionary(FIXTURES / "JumpReluAutoEncoder_b_dec", **UNKNOWN, apply_b_dec_to_input=True)
    assert torch.equal(load_dictionary(folder, **UNKNOWN).encode(x), said.encode(x))
    for wrong in ("no", 0, [True], {}):
        change(apply_b_dec_to_input=wrong)
        with pytest.raises(DialectError, match="must be true or false"):
            load_dictionary(folder, **UNKNOWN)
        with pytest.raises(DialectError, match="expected True or False"):
            load_dictionary(FIXTURES / "JumpReluAutoEncoder", **UNKNOWN, apply_b_dec_to_input=wrong)


@pytest.mark.parametrize("k", [0, -3, 3.5, True, float("nan"), "3" * 10**6, [3], 2**100])
def test_no_k_of_a_configuration_passes_unseen_or_makes_the_message_long(copied, k):
    folder, change = copied("AutoEncoderTopK")
    torch.save({name: v for name, v in tensors(folder).items() if name != "k"}, folder / "ae.pt")
    change(k=k)
    with pytest.raises(DialectError) as caught:
        load_dictionary(folder, **UNKNOWN)
    assert re.search(r"\bk\b", str(caught.value)) and len(str(caught.value)) < 500


def test_a_backup_without_normalisation_has_no_factor_and_a_factor_must_be_positive(copied):
    """The fixtures backup_... hold the scaled ones to the library's own codes."""
    folder, _ = copied("backup_GatedAutoEncoder")
    content = torch.load(folder / "ae.pt")
    kept = content.pop("norm_factor")
    torch.save(content, folder / "ae.pt")
    dictionary = load_dictionary(folder, **UNKNOWN)
    assert torch.equal(dictionary.b_dec, content["ae"]["decoder_bias"]) and not dictionary.metadata["notes"]
    scaled = load_dictionary(FIXTURES / "backup_GatedAutoEncoder", **UNKNOWN)
    assert torch.equal(scaled.b_dec, dictionary.b_dec * kept) and "norm_factor" in scaled.metadata["notes"][0]
    for wrong in (0.0, -1.0, float("nan"), "2.5", True):
        torch.save(content | {"norm_factor": wrong}, folder / "ae.pt")
        with pytest.raises(DialectError, match="norm_factor.*(positive|no number)"):
            load_dictionary(folder, **UNKNOWN)


def test_a_backup_in_its_first_steps_asks_for_the_threshold(copied):
    """-1 is "never set" in whatever unit; the answer is in that of activations."""
    folder, _ = copied("backup_BatchTopKSAE")
    content = torch.load(folder / "ae.pt")
    content["ae"]["threshold"].fill_(-1.0)
    torch.save(content, folder / "ae.pt")
    with pytest.raises(DialectError, match="threshold=...:.*0 for every positive code"):
        load_dictionary(folder, **UNKNOWN)
    assert (load_dictionary(folder, **UNKNOWN, threshold=0.75).threshold == 0.75).all()


@pytest.mark.parametrize("io, words", [("in", "its input"), ("in_and_out", "from its input to its output")])
def test_what_of_the_module_is_read_is_in_the_question(copied, io, words):
    folder, _ = copied("AutoEncoder")
    config = json.loads((folder / "config.json").read_text())
    config["buffer"]["io"] = io
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DialectError, match=f"site=.*resid_post_layer_3, layer 3, {words}"):
        load_dictionary(folder, model="unknown")
    notes = load_dictionary(folder, **UNKNOWN).metadata["notes"]
    assert any("transcoder" in note.lower() for note in notes) == (io == "in_and_out")


def test_trainers_whose_first_versions_scaled_activations_are_noted(copied):
    folder, change = copied("AutoEncoderNew")
    assert not load_dictionary(folder, **UNKNOWN).metadata["notes"]
    change(trainer_class="StandardTrainerNew")
    assert "mean norm of sqrt(d)" in load_dictionary(folder, **UNKNOWN).metadata["notes"][0]


def test_half_precision_is_only_how_weights_are_stored(copied):
    """The library computes in float32 whatever a file holds, and so do we: nothing to note, the same weights."""
    folder, _ = copied("BatchTopKSAE")
    halves = {name: v.half() if v.is_floating_point() else v for name, v in tensors(folder).items()}
    torch.save(halves, folder / "ae.pt")
    dictionary = load_dictionary(folder, **UNKNOWN)
    assert not dictionary.metadata["notes"]
    assert torch.equal(dictionary.W_dec, halves["decoder.weight"].float().T)


def test_what_is_written_keeps_the_buffer_that_its_scripts_read(tmp_path):
    dictionary = load_dictionary(FIXTURES / "BatchTopKSAE", **UNKNOWN)
    DIALECTS.get("dictionary_learning")().write(dictionary, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["buffer"] == dictionary.metadata["buffer"]
