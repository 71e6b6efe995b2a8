"""What a weight file may be: recognised by its tensors, damaged, foreign, or a pickle that wants to run code."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from vlsae import load_adapted
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.adaptation.files import read_file
from vlsae.adaptation.methods.vpt import VPT

CTX = {"ctx": torch.arange(4 * 128.0).reshape(4, 128)}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("legacy", "reason"), [(False, r"Python object, \w+.mkdir"), (True, "a bare pickle, as torch wrote")]
)
def test_a_malicious_pickle_is_refused_and_not_executed(tiny, tmp_path, legacy, reason):
    path, mark = tmp_path / "model.pth.tar-50", tmp_path / "executed"
    torch.save({"state_dict": CTX, "scheduler": Payload(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(AdaptationError, match=f"{reason}.*weights_only=False"):
        load_adapted(tiny, path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the payload is real
    assert mark.exists()


def test_a_plain_pickle_and_a_pickled_module_are_refused(tiny, tmp_path):
    path, mark = tmp_path / "cache.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(AdaptationError):
        load_adapted(tiny, path)
    assert not mark.exists()
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(AdaptationError, match=r"Linear.*state_dict\(\)"):
        load_adapted(tiny, path)


@pytest.mark.parametrize("score", [np.float64(81.5), np.float32(81.5), np.int64(3), np.bool_(True)])
def test_scores_beside_the_weights_are_allowed(tiny, tmp_path, score):
    path = tmp_path / "model-best.pth.tar"
    torch.save({"state_dict": CTX, "epoch": 50, "optimizer": None, "val_result": score}, path)
    assert torch.equal(load_adapted(tiny, path, position="end").adaptation.ctx, CTX["ctx"])
    assert torch.equal(
        load_adapted(tiny, tmp_path, position="end").adaptation.ctx, CTX["ctx"]
    )  # the folder's only file


def test_views_of_one_storage_are_read_once(tiny, tmp_path):
    """A file of 4 MB whose thousand tensors are views of one storage; each with a storage of its own would be 4 GB."""
    storage = torch.zeros(2**20)
    views = {str(i): storage[i : i + 1] for i in range(1000)}
    torch.save({"state_dict": {"ctx": storage[:512].view(4, 128)}, "memory": views}, tmp_path / "a.pt")
    held = read_file(tmp_path / "a.pt")
    assert len({value.untyped_storage().data_ptr() for value in held.values()}) == 1
    assert load_adapted(tiny, tmp_path / "a.pt", position="end").adaptation.ctx.shape == (4, 128)


def test_what_is_nested_without_end_is_refused(tiny, tmp_path):
    loop = {}
    loop["a"] = loop
    with pytest.raises(AdaptationError, match="50 levels; learned weights do not"):
        load_adapted(tiny, _write(tmp_path / "a.pt", {**CTX, "loop": loop}))


@pytest.mark.parametrize("index", [{}, {"weight_map": 3}, {"weight_map": {"w": "../a.pt"}}, {"weight_map": {"w": [1]}}])
def test_weights_in_several_files_are_files_of_their_folder(tiny, tmp_path, index):
    _write(tmp_path / "a.pt", CTX)
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdaptationError, match=r"does not name files of its folder|cannot be read"):
        load_adapted(tiny, folder)


def _write(path, value):
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "nothing.pt", "does not exist"),
        (lambda at: at, "has 0 weight files"),
        (lambda at: _write(at / "a.pt", {"weight": torch.ones(2), "note": "x"}), r"1 tensors \(weight\).*no known method"),
        (lambda at: _write(at / "a.pt", torch.ones(2)), "no known method"),
        (lambda at: _write(at / "a.pt", [torch.ones(2)]), r"0 tensors \(none\)"),
        (lambda at: _cut(_write(at / "a.pt", {"state_dict": CTX})), "no whole weight file"),
        (lambda at: _cut(_write(at / "a.pt", {"state_dict": CTX}), 0), "no whole weight file"),
        (lambda at: _text(at / "a.pt"), "no whole weight file"),
        (lambda at: _text(at / "a.safetensors"), "no whole safetensors file"),
        (lambda at: _write(at / "b.pt", {}) and _write(at / "a.pt", {}) and at, r"2 weight files \(a.pt, b.pt\)"),
        (lambda at: _write(at / "a.pt", {**CTX, "fc.0.weight": torch.ones(2, 2)}), "those of CLIP-Adapter .* and CoOp"),
    ],
)  # fmt: skip
def test_what_is_no_weight_file_is_refused_with_the_reason(tiny, tmp_path, make, message):
    with pytest.raises(AdaptationError, match=message):
        load_adapted(tiny, make(tmp_path))


def _cut(path, size=1000):
    path.write_bytes(path.read_bytes()[:size])
    return path


def _text(path):
    path.write_text("<html>404: Not Found</html>")
    return path


def test_unknown_options_are_refused(tiny, tmp_path):
    with pytest.raises(AdaptationError, match="CoOp .*takes no option ratio; it takes position"):
        load_adapted(tiny, _write(tmp_path / "a.pt", CTX), ratio=0.2)


def test_names_of_data_parallel_training_are_the_same(tiny, tmp_path):
    path = _write(tmp_path / "a.pt", {"state_dict": {f"module.{k}": v for k, v in CTX.items()}})
    assert torch.equal(load_adapted(tiny, path, position="front").adaptation.ctx, CTX["ctx"])
    assert load_adapted(tiny, path, position="front").adaptation.settings["position"] == "front"


def test_our_own_folder(tiny, tmp_path):
    adapted = AdaptedBackbone(tiny, VPT(tiny, n_prompts=2, depth=2))
    again = load_adapted(tiny, adapted.save(tmp_path / "vpt"))
    assert all(torch.equal(a, b) for a, b in zip(again.adaptation.parameters(), adapted.adaptation.parameters()))
    with pytest.raises(AdaptationError, match="takes no option position"):
        load_adapted(tiny, tmp_path / "vpt", position="end")
