"""The store: same bytes after any interruption, damage found and named, every token read exactly once."""

import errno
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlsae
from vlsae.activations import ActivationStore, ReaderState, StoreConfig, StoreError, extract, writer
from vlsae.activations import format as store_format
from vlsae.images import UnreadableImage
from vlsae.world import scenes

SITE = "vision.4.resid_post"


def _bytes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_holds_the_models_tokens(tiny, store):
    drawn = scenes(24, seed=5)
    expected = tiny.tokens(drawn[8:16], SITE)[:, 1:]
    assert (store.images(8, 16) - expected).abs().max() <= expected.abs().max() * 2**-11  # float16 rounds to 11 bits
    assert store.ids[3] == vlsae.load_images(drawn)[3].id
    assert torch.allclose(store.mean(), torch.cat([x for _, x in store.batches()]).flatten(0, 1).mean(0), atol=1e-5)
    assert store.complete
    assert store.manifest["shards"] == [8, 8, 8]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("policy", ["patches", "cls", "patches+cls", "all", "random_k"])
def test_policies_and_dtypes(tiny, tmp_path, policy, dtype):
    drawn = scenes(5, seed=1)
    out = extract(tiny, drawn, SITE, tmp_path / "s", tokens=policy, random_k=7, dtype=dtype, batch_size=2, shard_images=2,
                  progress=False)  # fmt: skip
    full = tiny.tokens(drawn, SITE)
    wanted = {"patches": range(1, 65), "cls": [0], "patches+cls": range(65), "all": range(65)}
    positions = [out.token_positions(i) if policy == "random_k" else list(wanted[policy]) for i in range(5)]
    expected = torch.stack([full[i, list(p)] for i, p in enumerate(positions)])
    bits = {"float16": 11, "bfloat16": 8, "float32": 23}[dtype]
    assert (out.images(0, 5) - expected).abs().max() <= expected.abs().max() * 2.0**-bits + 1e-5
    if policy == "random_k":
        assert all(len(set(p)) == 7 for p in positions)
        assert len({tuple(p) for p in positions}) == 5


def test_several_sites_in_one_pass(tiny, tmp_path):
    drawn = scenes(4, seed=2)
    sites = ["vision.-1.resid_post", "vision.1.mlp_out"]
    extract(tiny, drawn, sites, tmp_path, batch_size=2, shard_images=4, dtype="float32", progress=False)
    for site in sites:
        name = site.replace("-1", "5")
        assert torch.allclose(ActivationStore(tmp_path, name).images(0, 4), tiny.tokens(drawn, site)[:, 1:], atol=1e-5)
    with pytest.raises(StoreError, match=r"has no site vision.9.resid_post; it holds vision.5.resid_post"):
        ActivationStore(tmp_path, "vision.9.resid_post")


@pytest.mark.parametrize("tokens", ["patches", "random_k"])
def test_embeddings_beside_tokens_are_those_of_the_model(tiny, tmp_path, tokens):
    drawn = scenes(5, seed=3)
    options = {"tokens": tokens, "random_k": 3 * (tokens == "random_k"), "dtype": "float32", "progress": False}
    store = extract(tiny, drawn, ["vision.-2.resid_post", "vision.pooled"], tmp_path / "both", batch_size=2, **options)
    assert (store.embeddings() - tiny.encode_image(list(drawn))).abs().max() < 1e-6  # another batch, another rounding
    alone = extract(tiny, drawn, out=tmp_path / "alone", batch_size=2, **options)
    assert torch.equal(store.images(0, 5), alone.images(0, 5)) and alone.embeddings() is None
    pooled = ActivationStore(tmp_path / "both", "vision.pooled")
    assert (pooled.n_tokens, pooled.token_roles, len(pooled)) == (1, ["cls"], 5)
    assert [len(x) for x, _ in pooled.shuffled(2)] == [2, 2, 1]
    store.verify()


def test_pooled_store(tiny, tmp_path):
    drawn = scenes(4, seed=2)
    out = extract(tiny, drawn, "vision.pooled", tmp_path, batch_size=4, dtype="float32", progress=False)
    assert out.n_tokens == 1
    assert torch.allclose(
        torch.nn.functional.normalize(out.images(0, 4)[:, 0], dim=1), tiny.encode_image(drawn), atol=1e-5
    )


CHILD = """
import sys, torch
torch.set_num_threads(1)
from vlsae import extract
from vlsae.world import scenes
extract("tiny", scenes(80, seed=5), out=sys.argv[1], batch_size=4, shard_images=4, progress=False)
"""


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path):
    """kill -9 at several moments of the extraction, in fresh processes, against an uninterrupted run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([sys.executable, "-c", CHILD, str(whole)], check=True, capture_output=True)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(broken)], stderr=subprocess.DEVNULL)
        while not (broken / "shards").exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.25))
        process.kill()
        process.wait()
        seen.add(len(store_format.complete_shards(broken)))
        assert not (broken / "manifest.json").exists() or len(store_format.complete_shards(broken)) == 20
    subprocess.run([sys.executable, "-c", CHILD, str(broken)], check=True, capture_output=True)
    assert seen != {20}, "no kill came before the end"
    assert _bytes(whole) == _bytes(broken)
    ActivationStore(broken).verify()


def test_a_flipped_byte_is_found_and_named(tiny, tmp_path):
    out = extract(tiny, scenes(4), out=tmp_path, batch_size=2, shard_images=2, progress=False)
    out.verify()
    path = tmp_path / "shards" / "00001" / f"{SITE}.bin"
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"Damaged: .*00001.*resid_post\.bin \(checksum differs\)"):
        out.verify()
    facts = tmp_path / "shards" / "00000" / "shard.json"
    facts.write_text(facts.read_text().replace('"first": 0', '"first": 1'))
    with pytest.raises(StoreError, match=r"00000.shard\.json"):
        out.verify()
    path.write_bytes(data[:-2])
    with pytest.raises(StoreError, match="expected 49152 bytes"):
        ActivationStore(tmp_path).images(0, 4)


def test_a_full_disk_leaves_a_resumable_store(tiny, tmp_path, monkeypatch):
    drawn, options = scenes(8, seed=3), {"batch_size": 2, "shard_images": 2, "progress": False}
    written, real = [], writer._write_bytes

    def full(file, data):
        written.append(len(data))
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(writer, "_write_bytes", full)
    with pytest.raises(OSError, match=r"The disk is full: .* keeps its 2 complete shards \(4 of 8 images\)"):
        extract(tiny, drawn, out=tmp_path / "a", **options)
    monkeypatch.setattr(writer, "_write_bytes", real)
    partial = ActivationStore(tmp_path / "a")
    assert partial.n_images == 4
    assert not partial.complete
    extract(tiny, drawn, out=tmp_path / "a", **options)
    extract(tiny, drawn, out=tmp_path / "b", **options)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_unreadable_images_are_skipped_and_named(tiny, tmp_path, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        Image.fromarray(scenes(5, seed=4)[i].pixels).save(photos / f"{i}.png")
    (photos / "2.png").write_bytes(b"broken")
    out = extract(tiny, photos, out=tmp_path / "s", batch_size=2, shard_images=2, progress=False)
    assert [Path(n).name for n in out.names] == ["0.png", "1.png", "3.png", "4.png"]
    assert out.indices == [0, 1, 3, 4]
    assert out.manifest["n_skipped"] == 1
    assert "2.png: not a readable image" in caplog.text
    with pytest.raises(UnreadableImage, match=r"2\.png"):
        extract(tiny, photos, out=tmp_path / "strict", strict=True, progress=False)
    for path in photos.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(StoreError, match="None of the 5 images could be read"):
        extract(tiny, photos, out=tmp_path / "none", progress=False)


def test_other_arguments_do_not_continue_a_store(tiny, tmp_path):
    extract(tiny, scenes(2), out=tmp_path, progress=False)
    with pytest.raises(StoreError, match="begun with other arguments .dtype: 'float16' there, 'float32' now"):
        extract(tiny, scenes(2), out=tmp_path, dtype="float32", progress=False)
    with pytest.raises(StoreError, match="begun with other images .number 0 differs"):
        extract(tiny, scenes(2, seed=9), out=tmp_path, progress=False)


def test_nothing_infinite_is_stored(tiny, tmp_path):
    with tiny.edit("vision.4.resid_post", lambda x: x * 1e6), pytest.raises(StoreError, match="not finite in float16"):
        extract(tiny, scenes(2), "vision.5.resid_pre", tmp_path, progress=False)


def test_high_norms_are_warned_of(tiny, tmp_path, caplog):
    def spike(x):
        x = x.clone()
        x[:, 5] *= 40
        return x

    with tiny.edit("vision.4.resid_post", spike):
        extract(tiny, scenes(3), "vision.5.resid_pre", tmp_path, dtype="float32", progress=False)
    assert re.search(r"1\.5\d % of the tokens have norms above 4 times the median", caplog.text)  # 1 of 64


def test_norm_quantiles_are_within_a_bin(tiny, store):
    norms = torch.cat([x for _, x in store.batches()]).norm(dim=-1).flatten().double().numpy()
    stored = store.manifest["norm_quantiles"][SITE]
    exact = np.quantile(norms, store_format.QUANTILES, method="inverted_cdf")
    assert (np.asarray(stored) >= exact * 0.999).all()
    assert (np.asarray(stored) <= exact * 1.051).all()


def test_shuffled_reads_every_token_once(store):
    seen = torch.cat([x for x, _ in store.shuffled(100, ReaderState(seed=2))])
    everything = torch.cat([x for _, x in store.batches()]).flatten(0, 1)
    key = torch.randn(store.d, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert len(seen) == len(store)
    assert torch.equal((seen.double() @ key).sort().values, (everything.double() @ key).sort().values)
    assert not torch.equal(seen, everything)


@pytest.mark.parametrize("size", [64, 90, 600, 5000])
@pytest.mark.parametrize("buffer", [2, 4, 7, 1000])
def test_shuffled_is_deterministic_and_resumes_anywhere(store, monkeypatch, buffer, size):
    """Batches smaller and larger than a buffer of images (2 to 1,000 of 64 tokens), and than the whole store."""
    monkeypatch.setattr("vlsae.activations.reader.BUFFER_IMAGES", buffer)
    whole = list(store.shuffled(size, ReaderState(seed=1)))
    assert all(len(x) == size for x, _ in whole[:-1])
    assert sum(len(x) for x, _ in whole) == len(store)
    for stop in range(0, len(whole), 3):
        state = whole[stop][1]
        rest = list(store.shuffled(size, state))
        assert len(rest) == len(whole) - stop - 1
        assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(rest, whole[stop + 1 :], strict=True))
    assert not torch.equal(whole[0][0], next(store.shuffled(size, ReaderState(seed=3)))[0])


def test_ranks_share_the_tokens(store):
    parts = [torch.cat([x for x, _ in store.shuffled(64, ReaderState(0, r), world_size=3)]) for r in range(3)]
    assert sum(map(len, parts)) == len(store)
    key = torch.randn(store.d, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    everything = torch.cat([x for _, x in store.batches()]).flatten(0, 1).double() @ key
    assert torch.equal((torch.cat(parts).double() @ key).sort().values, everything.sort().values)


def test_selected_tokens_only(store):
    select = np.zeros((store.n_images, store.n_tokens), bool)
    select[::2, 5:9] = True
    seen = torch.cat([x for x, _ in store.shuffled(10, select=select)])
    expected = torch.cat([x for _, x in store.batches()])[torch.from_numpy(select)]
    assert len(seen) == 48
    assert torch.equal(seen.sum(1).sort().values, expected.sum(1).sort().values)


def test_format_md_and_the_code_name_the_same_fields(store):
    """FORMAT.md is normative: its tables against the dataclass and the files on disk."""
    text = (Path(store_format.__file__).parent / "FORMAT.md").read_text()
    tables = {part.splitlines()[0].strip(): set(re.findall(r"^\| (\w+(?:, \w+)*) \|", part, re.M))
              for part in text.split("## ")[1:]}  # fmt: skip
    named = {k: {f for row in v for f in row.split(", ")} - {"field"} for k, v in tables.items()}
    assert named["config.json"] == set(StoreConfig.__dataclass_fields__)
    assert named["shard.json"] == set(json.loads((store.path / "shards/00000/shard.json").read_text()))
    assert named["manifest.json"] == set(store.manifest)


def test_foreign_folders(tmp_path):
    with pytest.raises(StoreError, match="is no activation store"):
        ActivationStore(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(StoreError, match="is damaged"):
        ActivationStore(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 99}')
    with pytest.raises(StoreError, match="schema 99, this version reads 1"):
        ActivationStore(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "registers"}, "tokens='registers' is unknown"),
        ({"tokens": "random_k", "random_k": 500}, "random_k=500 must lie between 1 and the 65"),
        ({"dtype": "int8"}, "dtype='int8' cannot be stored"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"site": "text.0.resid_post"}, "sites of text were given"),
    ],
)
def test_impossible_requests(tiny, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        extract(tiny, scenes(2), out=tmp_path, progress=False, **options)
