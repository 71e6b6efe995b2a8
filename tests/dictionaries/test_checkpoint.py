"""Our own folders where they are damaged or hostile: refused before anything is allocated, with the reason."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.contract.test_dictionaries import make
from tests.strangers import bounded
from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.checkpoint import CONFIG, WEIGHTS, CheckpointError, assemble, load_dictionary
from vlsae.stored import memory


@pytest.fixture(autouse=True, scope="module")
def compiler():
    """Some operations on the meta device load torch's compiler once, which is memory of no checkpoint."""
    with torch.device("meta"):
        make("relu")


def changed(folder, family, **settings):
    """A folder of ours whose configuration states other settings."""
    config = json.loads((make(family).save(folder) / CONFIG).read_text())
    config["metadata"]["vlsae"]["settings"].update(settings)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as refusal:
        bounded(lambda: load_dictionary(folder), seconds=10, megabytes=8)  # the weights are a few kB
    assert len(str(refusal.value)) <= 2000


@pytest.mark.parametrize(("family", "settings", "message"), [
    ("topk", {"k": 2.5}, "k=2.5 is no int"), ("topk", {"k": True}, "k=True is no int"), ("topk", {"k": "3"}, "k='3' is no int"),
    ("topk", {"k": None}, "k=None is no int"), ("topk", {"k": -1}, "must lie between"),
    ("topk", {"k": 10**12}, "larger than the weights"),
    ("topk", {"k": 11}, "must lie between"), ("topk", {"other": 1}, "unexpected keyword"),
    ("topk", {"x" * 150: [1] * 900}, "unexpected"),
    ("switch", {"experts": 10**9}, "larger than the weights"), ("switch", {"scale_by_prob": 1}, "scale_by_prob=1 is no bool"),
    ("nested_dictionary", {"prefixes": [1, 10**12]}, "larger than the weights"),
    ("nested_dictionary", {"prefixes": "abc"}, "do not fit"),
    ("nested_dictionary", {"prefixes": [10, 1]}, "must rise"), ("nested_sparsity", {"ks": [[1]]}, "do not fit"),
    ("archetypal", {"candidates": 10**9}, "larger than the weights"), ("archetypal", {"candidates": 300}, "do not fit"),
    ("archetypal", {"delta": float("nan")}, "larger than the weights"), ("vaease", {"hidden": 64}, "do not fit"),
    ("crosscoder", {"layers": 5}, "do not divide"), ("group_codebook", {"groups": 0}, "must divide"),
    ("feed_forward", {"activation": ["gelu"]}, r"activation=\['gelu'\] is no str"),
    ("matching_pursuit", {"tol": "0"}, "tol='0' is no float"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path, family, settings, message):
    refused(changed(tmp_path, family, **settings), message)


@pytest.mark.parametrize("sizes", [
    {"d_in": 10**12}, {"d_sae": 10**12}, {"d_in": 0}, {"d_sae": -1}, {"d_in": "12"}, {"d_sae": None}, {"d_sae": 10.0},
    {"d_in": True}, {"d_in": 100, "d_sae": 1}, {"d_in": 13}, {"d_sae": 9},
])  # fmt: skip
def test_sizes_are_held_to_the_tensors(tmp_path, sizes):
    config = json.loads((make("topk").save(tmp_path) / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | sizes))
    refused(tmp_path, "d_in, d_sae = .*numbers|do not fit")


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: {**w, "W_dec": torch.full_like(w["W_dec"], float("nan"))}, "W_dec holds NaN"),
    (lambda w: {**w, "W_dec": w["W_dec"].int()}, "torch.int32"),
    (lambda w: {**w, "b_enc": w["b_enc"].index_fill(0, torch.tensor(3), float("inf"))}, "b_enc holds NaN or infinite"),
    (lambda w: {**w, "W_dec": w["W_dec"].T.contiguous()}, "W_dec is .12, 10. real, expected .10, 12."),
    (lambda w: {"W_dec": w["W_dec"]}, "missing"),
    (lambda w: {**w, "x" * 3000: w["b_dec"].clone()}, "x is .12. real, expected missing"), (lambda w: {}, "holds 0 numbers"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    make("topk").save(tmp_path)
    save_file(change(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    refused(tmp_path, message)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    make("topk").save(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    refused(tmp_path, "a folder or a device")


def test_a_codebook_of_several_groups_is_opened(tmp_path):
    """Its atoms are zero outside their group, so that the file holds fewer numbers than d times n_latents."""
    book = DICTIONARIES.get("group_codebook")(12, 10, k=2, groups=2)
    assert torch.equal(load_dictionary(book.save(tmp_path)).W_dec, book.W_dec)


def test_opening_draws_no_weights_and_leaves_torchs_random_numbers_alone():
    before = torch.random.get_rng_state()
    size = 2**20  # a matrix of 4 TB
    with pytest.raises(CheckpointError, match="W_dec is .1048576, 1. real, expected .1048576, 1048576. real"):
        bounded(lambda: assemble("topk", size, size, {"k": 1}, "none", {"W_dec": torch.zeros(size, 1)}), megabytes=8)
    assert torch.equal(torch.random.get_rng_state(), before)


def stored(*shape):
    """A tensor as readers of files give it."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    held = torch.from_numpy(memory(values.nbytes)).view(values.dtype).view(shape)
    return held.copy_(values)


def topk_of(**weights):
    return assemble("topk", 5, 7, {"k": 2}, "none", {"b_enc": stored(7), "b_dec": stored(5), **weights})


def test_weights_in_the_order_of_the_family_are_taken_over():
    columns, rows = stored(7, 5), stored(7, 5)
    sae = topk_of(W_enc=columns.T, W_dec=rows)
    assert sae.W_enc.data_ptr() == columns.data_ptr() and sae.W_dec.data_ptr() == rows.data_ptr()
    assert sae.W_enc.requires_grad and sae.W_dec.is_leaf


def test_weights_in_another_order_or_without_memory_of_their_own_are_copied():
    fresh, rows, both = topk_of(W_enc=stored(7, 5).T, W_dec=stored(7, 5)), stored(5, 7), stored(14, 5)
    odd = torch.from_numpy(memory(144)[4:]).view(torch.float32).view(7, 5).copy_(both[:7])  # between torch's addresses
    for W_enc, W_dec in (
        (rows, stored(7, 5)),
        (both[:7].T, both[7:]),
        (both[:7].T, odd),
        (rows, rows[:, :1].T.expand(7, 5)),
    ):
        sae = topk_of(W_enc=W_enc, W_dec=W_dec)
        for name, given in (("W_enc", W_enc), ("W_dec", W_dec)):
            found = getattr(sae, name)
            assert torch.equal(found, given) and found.stride() == getattr(fresh, name).stride()
            assert found.data_ptr() % 64 == 0 and found.untyped_storage().nbytes() == found.nbytes
        assert sae.W_enc.data_ptr() != W_enc.data_ptr()


def test_one_matrix_for_encoder_and_atoms_becomes_two():
    rows = stored(7, 5)
    sae = topk_of(W_enc=rows.T, W_dec=rows)
    with torch.no_grad():
        sae.W_dec.zero_()
    assert sae.W_enc.all()
