"""What the precision of the model means for a store, and the older schema that had none."""

import json
from types import SimpleNamespace

import pytest
import torch

from vlsae import onednn
from vlsae.activations import ActivationStore, StoreError, extract
from vlsae.activations.extraction import _default_batch
from vlsae.backbones import PRECISIONS, load_model
from vlsae.cli import main
from vlsae.world import scenes


def test_precision_is_part_of_the_store(tiny, tmp_path):
    """Another precision does not continue a store, and a run does not take one store for the other."""
    drawn, low = scenes(4, seed=1), load_model("tiny", precision="bfloat16")
    exact = extract(tiny, drawn, out=tmp_path / "a", dtype="float32", progress=False)
    rounded = extract(low, drawn, out=tmp_path / "b", dtype="float32", progress=False)
    assert (exact.config.precision, rounded.config.precision) == ("float32", "bfloat16")
    assert exact.config.weight_hash == rounded.config.weight_hash
    assert rounded.fingerprint == exact.fingerprint.replace("/", "/bfloat16/", 1)
    error = (rounded.images(0, 4) - exact.images(0, 4)).norm() / exact.images(0, 4).norm()
    assert 1e-4 < error < 0.02  # see tests/contract/test_precision.py
    with pytest.raises(StoreError, match="precision: 'float32' there, 'bfloat16' now"):
        extract(low, drawn, out=tmp_path / "a", dtype="float32", progress=False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_command_line(tmp_path, precision):
    if precision == "float32_onednn" and not onednn.is_available():
        pytest.skip("this torch has no oneDNN")
    for i, scene in enumerate(scenes(3, seed=1)):
        scene.image.save(tmp_path / f"{i}.png")
    assert main(["extract", str(tmp_path), "--out", str(tmp_path / "s"), "--precision", precision]) == 0
    store = ActivationStore(tmp_path / "s")
    expected = load_model("tiny", precision=precision).tokens(scenes(3, seed=1), "vision.-2.resid_post")[:, 1:]
    assert store.config.precision == precision
    assert torch.allclose(store.images(0, 3), expected, rtol=2**-11, atol=1e-4)  # stored in float16


def test_schema_1_can_be_read_and_not_continued(tiny, tmp_path):
    drawn = scenes(6, seed=1)
    options = {"batch_size": 2, "shard_images": 2, "progress": False}
    whole = extract(tiny, drawn, out=tmp_path, **options)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("precision") == "float32"
    (tmp_path / "config.json").write_text(json.dumps({**config, "schema": 1}))
    old = ActivationStore(tmp_path)
    assert old.config.precision == "float32"
    assert old.fingerprint == whole.fingerprint
    assert old.complete
    with pytest.raises(StoreError, match="schema: 1 there, 2 now"):
        extract(tiny, drawn, out=tmp_path, **options)
    (tmp_path / "config.json").write_text(json.dumps({**config, "schema": 2}))
    with pytest.raises(StoreError, match=r"misses \['precision'\]"):
        ActivationStore(tmp_path)


def test_batches_fit_the_cache_of_a_processor(tiny):
    """1,600 tokens: 16 images of 65 tokens, 8 of ViT-B/16's 197, 4 of ViT-L/14's 257, 2 of 577."""
    sizes = {65: 16, 197: 8, 257: 4, 577: 2, 4097: 1, 50: 32, 17: 32}
    for tokens, expected in sizes.items():
        model = SimpleNamespace(device=torch.device("cpu"), token_roles=["patch"] * tokens)
        assert _default_batch(model) == expected
    assert _default_batch(SimpleNamespace(device=torch.device("cuda"), token_roles=["patch"] * 577)) == 32
