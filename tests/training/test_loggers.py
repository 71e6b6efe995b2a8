"""Experiment trackers: asked for by name, told every row, and a clear sentence where they are missing."""

import json
import sys
import types

import pytest
import torch

from vlsae.training import train

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = {"n_latents": 8, "k": 2, "steps": 12, "batch_size": 50, "log_every": 5, "progress": False}


class Recorder:
    """Stands in for wandb and for tensorboard's writer."""

    def __init__(self, *args, **options):
        self.calls, self.options = [], options
        Recorder.last = self

    def log(self, row, step):
        self.calls.append((step, row))

    def add_scalar(self, name, value, step):
        self.calls.append((step, name, value))

    def add_text(self, name, text):
        self.calls.append((name, json.loads(text)))

    def finish(self):
        self.calls.append("closed")

    close = finish


def test_wandb_gets_every_row(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Recorder))
    train(X, "topk", out=tmp_path, logger="wandb", **OPTIONS)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert Recorder.last.options["config"]["n_latents"] == 8
    assert [c for c in Recorder.last.calls if c != "closed"] == [
        (row.pop("step"), row) for row in (dict(r) for r in rows)
    ]
    assert Recorder.last.calls[-1] == "closed"


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Recorder))
    train(X, "topk", out=tmp_path, logger="tensorboard", **OPTIONS)
    calls = Recorder.last.calls
    assert calls[0][0] == "recipe"
    assert [c[0] for c in calls if c[1] == "train/ev"] == [5, 10, 12]
    assert calls[-1] == "closed"


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_tracker_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "wandb" if name == "wandb" else "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=rf"pip install 'vlsae\[{name}\]'"):
        train(X, "topk", out=tmp_path, logger=name, **OPTIONS)


def test_trackers_need_a_name_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="logger='excel' is unknown; use one of tensorboard, wandb"):
        train(X, "topk", out=tmp_path, logger="excel", **OPTIONS)
    with pytest.raises(ValueError, match="needs a folder"):
        train(X, "topk", logger="wandb", **OPTIONS)
