"""Shared pieces of the tests: one thread setting, models, and small stores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(int(os.environ.get("VLSAE_TEST_THREADS", "2")))


@pytest.fixture(scope="session")
def tiny():
    from vlsae import load_model

    return load_model("tiny")


@pytest.fixture(scope="session")
def tiny16():
    from vlsae import load_model

    return load_model("tiny16")


@pytest.fixture(scope="session")
def store(tiny, tmp_path_factory):
    """Activations of 24 scenes of several objects, with their group as label."""
    from vlsae import extract
    from vlsae.world import scenes

    folder = tmp_path_factory.mktemp("store") / "activations"
    return extract(tiny, scenes(24, seed=5), out=folder, batch_size=8, shard_images=8, progress=False)
