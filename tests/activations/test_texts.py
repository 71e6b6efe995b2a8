"""Stores of whole embeddings, of images and of texts, and MSAE trained on them by commands."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlsae.activations import ActivationStore, StoreError, extract, missing_ranks
from vlsae.activations.texts import load_texts, text_id
from vlsae.cli import main
from vlsae.dictionaries.checkpoint import load_dictionary
from vlsae.report import write_report
from vlsae.world import scenes


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """12 scenes as a folder of pictures, and their captions as a file with blank lines and foreign line ends."""
    folder = tmp_path_factory.mktemp("pooled")
    made = scenes(12, seed=6, resolution=96)
    (folder / "photos").mkdir()
    for i, scene in enumerate(made):
        scene.image.save(folder / "photos" / f"{i:02d}.png")
    lines = [scene.caption for scene in made]
    (folder / "captions.txt").write_bytes(("\ufeff" + "\r\n\r\n".join(lines) + "\r\n").encode())
    return folder, lines


@pytest.mark.parametrize(("given", "site"), [("photos", "vision.pooled"), ("captions.txt", "text.pooled")])
def test_msae_by_commands(tiny, shown, tmp_path, given, site):
    """The store holds the model's embeddings, and the trained dictionary centres on their mean with norm sqrt(d)."""
    folder, lines = shown
    store, out = tmp_path / "store", tmp_path / "dictionary"
    extracting = ["extract", str(folder / given), "--site", site, "--dtype", "float32", "--out", str(store), "--json"]
    assert main(extracting) == 0
    assert main(extracting) == 0  # found finished
    found = ActivationStore(store)
    found.verify()
    direct = (
        tiny.encode_text(lines)
        if site == "text.pooled"
        else tiny.encode_image([s.image for s in scenes(12, seed=6, resolution=96)])
    )
    assert torch.allclose(found.embeddings(), direct, atol=1e-5)  # float32 in other batches
    if site == "text.pooled":
        assert (found.names, found.ids) == (lines, [text_id(line) for line in lines])
        assert set(found.labels) == {-1} and found.sizes[0] == [0, 0]
    training = [
        "train",
        "--preset",
        "msae_rw",
        "--data",
        str(store),
        "--steps",
        "15",
        "--batch-size",
        "24",
        "--lr",
        "1e-3",
    ]
    assert main([*training, "--out", str(out), "--json"]) == 0
    sae, x = load_dictionary(out), found.images(0, 12)[:, 0]
    assert sae.family == "nested_sparsity" and sae.n_latents == 8 * found.d
    seen = sae.transform(x)
    assert seen.mean(0).abs().max() < 1e-4  # rounding of sums of 12 values of size 1
    assert seen.norm(dim=1).mean().item() == pytest.approx(found.d**0.5, rel=1e-5)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert rows[-1]["ev"] > 0.5  # 0 would be the mean
    assert F.mse_loss(sae(x), x) < 0.5 * x.var(0, correction=0).mean()
    with pytest.raises(ValueError, match=f"holds {site}, one vector each and no patches"):
        write_report(found, sae, None, tmp_path / "report.html")


def test_texts_from_anywhere(tiny, tmp_path):
    """A list gives the store of a file, in shards, and other texts do not continue it."""
    texts = [f"a photo of {n} cats" for n in range(5)]
    options = {"batch_size": 2, "shard_images": 2, "progress": False}
    store = extract(tiny, texts, "text.pooled", tmp_path, rank=0, world_size=2, **options)
    assert not store.complete and missing_ranks(store, 2) == [1]
    store = extract(tiny, texts, "text.pooled", tmp_path, **options)
    assert store.complete and store.names == texts and store.manifest["shards"] == [2, 2, 1]
    with pytest.raises(StoreError, match="begun with other images"):
        extract(tiny, [f"no {text}" for text in texts], "text.pooled", tmp_path, **options)


def test_messages(tiny, shown, tmp_path):
    folder, _ = shown
    with pytest.raises(StoreError, match=r"texts at text.pooled alone; sites of text, vision were given"):
        extract(tiny, ["a cat"], ["vision.pooled", "text.pooled"], tmp_path)
    with pytest.raises(ValueError, match="photos holds no texts; give a .txt"):
        extract(tiny, folder / "photos", "text.pooled", tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no lines with text"):
        load_texts(tmp_path / "empty.txt")
    for wrong in ([], ["a", " "], [Image.new("RGB", (2, 2))], scenes(2)):
        with pytest.raises(ValueError, match="was given where texts are read"):
            load_texts(wrong)
    assert list(tmp_path.iterdir()) == [tmp_path / "empty.txt"]
