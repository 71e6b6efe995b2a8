"""Several jobs, one store: in any order, at once, killed and started again, they leave the bytes of a single job."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from vlsae.activations import ActivationStore, StoreError, extract, job_place, missing_ranks
from vlsae.activations.ranks import shards_of
from vlsae.cli import main
from vlsae.world import scenes

OPTIONS = {"batch_size": 2, "shard_images": 4, "progress": False}  # 22 pictures: 6 shards


def _bytes(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder in which some pictures cannot be read: one alone, and all four of the shard 4."""
    folder = tmp_path_factory.mktemp("photos")
    for i, scene in enumerate(scenes(22, seed=4)):
        Image.fromarray(scene.pixels).save(folder / f"{i:02d}.png")
    for i in (1, 16, 17, 18, 19):
        (folder / f"{i:02d}.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def alone(tiny, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "store"
    extract(tiny, photos, out=out, **OPTIONS)
    return _bytes(out)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_ranks_in_any_order_leave_the_bytes_of_one_job(tiny, photos, alone, tmp_path, order):
    for n, rank in enumerate(order):
        store = extract(tiny, photos, out=tmp_path, rank=rank, world_size=3, **OPTIONS)
        assert store.complete == (n == 2)
        assert missing_ranks(store, 3) == sorted(order[n + 1 :])
    assert _bytes(tmp_path) == alone
    store.verify()
    assert store.manifest["shards"] == [3, 4, 4, 4, 0, 2]
    assert store.indices == [i for i in range(22) if i not in (1, 16, 17, 18, 19)]


def test_a_missing_rank_is_named(tiny, photos, tmp_path):
    for rank in (0, 2):
        store = extract(tiny, photos, out=tmp_path, rank=rank, world_size=3, **OPTIONS)
    assert not store.complete
    assert (store.missing, missing_ranks(store, 3)) == ([2, 3], [1])
    assert store.n_images == 9
    with pytest.raises(
        StoreError, match=r"not complete.*on every rank.*Shard 2 \(images 8 to 11\) is missing. Shard 3"
    ):
        _ = store.manifest


def test_another_number_of_jobs_takes_over(tiny, photos, alone, tmp_path):
    extract(tiny, photos, out=tmp_path, rank=1, world_size=3, **OPTIONS)
    extract(tiny, photos, out=tmp_path, rank=1, world_size=2, **OPTIONS)
    assert extract(tiny, photos, out=tmp_path, **OPTIONS).complete
    assert _bytes(tmp_path) == alone


def test_a_deleted_shard_is_written_again(tiny, photos, alone, tmp_path):
    extract(tiny, photos, out=tmp_path, **OPTIONS)
    shutil.rmtree(tmp_path / "shards/00002")
    store = extract(tiny, photos, out=tmp_path, rank=0, world_size=3, **OPTIONS)
    assert (store.complete, missing_ranks(store, 3)) == (False, [1])
    extract(tiny, photos, out=tmp_path, rank=1, world_size=3, **OPTIONS)
    assert _bytes(tmp_path) == alone


CHILD = """
import sys, time, torch
torch.set_num_threads(1)
from vlsae.activations import extract, writer
if sys.argv[5:] == ["hang"]:
    writer._write_bytes = lambda file, data: time.sleep(600)
extract("tiny", sys.argv[1], out=sys.argv[2], batch_size=2, shard_images=4, progress=False,
        rank=int(sys.argv[3]), world_size=int(sys.argv[4]))
"""


def _start(photos, out, rank, world_size, *more):
    command = [sys.executable, "-c", CHILD, str(photos), str(out), str(rank), str(world_size), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_at_once_and_one_of_them_killed(photos, alone, tmp_path):
    """Three processes begin the store together; one is killed amid a shard and leaves its work to a second start."""
    jobs = [_start(photos, tmp_path / "s", rank, 3, *(["hang"] if rank == 1 else [])) for rank in range(3)]
    shards = tmp_path / "s" / "shards"
    mine = list(shards_of(1, 3, 6))
    while not any(shards.glob(f".partial-{mine[0]:05d}*")) and jobs[1].poll() is None:
        time.sleep(0.01)
    jobs[1].kill()
    outputs = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, -9, 0], outputs
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert missing_ranks(ActivationStore(tmp_path / "s"), 3) == [1]
    again = _start(photos, tmp_path / "s", 1, 3)
    assert again.wait() == 0, again.communicate()[1]
    assert _bytes(tmp_path / "s") == alone


def test_two_finishers_at_once(tiny, photos, alone, tmp_path, monkeypatch):
    """Another rank completes the store and tidies up while this one is writing its manifest."""
    from vlsae.activations import extraction

    real = extraction.write_json

    def overtaken(path, value):
        if path.name == "manifest.json":
            monkeypatch.setattr(extraction, "write_json", real)
            extraction._complete(path.parent, value)
            raise FileNotFoundError(path)
        real(path, value)

    monkeypatch.setattr(extraction, "write_json", overtaken)
    assert extract(tiny, photos, out=tmp_path, **OPTIONS).complete
    assert _bytes(tmp_path) == alone


def test_the_same_rank_twice_at_once_is_refused(tiny, photos, tmp_path, monkeypatch):
    """The second start clears the first one's unfinished shard away; the first says so and spoils nothing."""
    from vlsae.activations import writer

    real = writer._write_bytes

    def intruded(file, data):
        monkeypatch.setattr(writer, "_write_bytes", real)
        writer.clear_leftovers(tmp_path, range(6))
        real(file, data)

    monkeypatch.setattr(writer, "_write_bytes", intruded)
    with pytest.raises(StoreError, match="Another process writes shard 0 of .* too; start every rank once"):
        extract(tiny, photos, out=tmp_path, **OPTIONS)
    assert not list((tmp_path / "shards").iterdir())


@pytest.mark.parametrize("n_shards", range(1, 12))
def test_ranks_share_all_shards_evenly(n_shards):
    for world_size in range(1, n_shards + 1):
        parts = [shards_of(rank, world_size, n_shards) for rank in range(world_size)]
        assert [n for part in parts for n in part] == list(range(n_shards))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("place", "message"),
    [((3, 3), "rank=3 of world_size=3 does not exist"), ((-1, 2), "rank=-1"), ((0, 0), "world_size=0"),
     ((0, 7), "world_size=7 is more than the 6 shards of this store; use fewer ranks")],
)  # fmt: skip
def test_impossible_places(tiny, photos, tmp_path, place, message):
    with pytest.raises(StoreError, match=message):
        extract(tiny, photos, out=tmp_path / "s", rank=place[0], world_size=place[1], **OPTIONS)
    assert not (tmp_path / "s").exists()


def test_where_a_job_stands():
    torchrun = {"RANK": "1", "WORLD_SIZE": "4"}
    assert job_place(None, None, {}) == (0, 1)
    assert job_place(None, None, torchrun) == (1, 4)
    assert job_place(0, 2, torchrun) == (0, 2)
    assert job_place(3, None, torchrun) == (3, 4)
    with pytest.raises(StoreError, match="rank=3 and world_size=None were given; give both"):
        job_place(3, None, {})


def test_command_line(photos, tmp_path, capsys, monkeypatch):
    """The flags, torchrun's variables, and what is said while ranks are missing."""
    command = ["extract", str(photos), "--out", str(tmp_path), "--shard-images", "8", "--batch-size", "8", "--json"]
    assert main([*command, "--rank", "2", "--world-size", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["complete"], said["missing_ranks"]) == (False, [0, 1])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["missing_ranks"] == [0]
    assert main([*command, "--rank", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["n_skipped"] == 5
    assert main([*command, "--rank", "5"]) == 2
    assert "rank=5 of world_size=3 does not exist" in capsys.readouterr().err


def test_a_rank_without_a_readable_image(tiny, tmp_path):
    """It leaves the rest to the others, and so does a rank that comes before any image was read."""
    for i, scene in enumerate(scenes(8, seed=5)):
        Image.fromarray(scene.pixels).save(tmp_path / f"{i}.png")
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    out = tmp_path / "store"
    store = extract(tiny, tmp_path, out=out, rank=0, world_size=2, **OPTIONS)
    assert not store.complete and missing_ranks(store, 2) == [1]
    assert (store.n_images, len(store), store.missing) == (0, 0, [1])
    assert not ActivationStore(out).complete
    store = extract(tiny, tmp_path, out=out, rank=1, world_size=2, **OPTIONS)
    assert store.complete and store.n_images == 4 and store.manifest["n_skipped"] == 4
    for i in range(4, 8):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(StoreError, match="None of the 8 images could be read"):
        extract(tiny, tmp_path, out=tmp_path / "none", **OPTIONS)
