"""Several processes against one: the same losses, gradients and weights, whatever they share."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.training.teamwork import BASE, RECIPES, X, alone, come_and_go, disagree, work
from vlsae import load_dictionary
from vlsae.dictionaries.base import initial_atoms
from vlsae.training import train
from vlsae.training.loop import choose_engine
from vlsae.training.recipe import make_config
from vlsae.training.start import initial_dictionary
from vlsae.training.team import Team

SHARES = {"data": (2, 1), "latents": (2, 2), "both": (4, 2)}


def _start(size, shards, folder, names, steps=BASE["steps"]):
    """Processes from a server that has imported everything once, and has no threads yet."""
    multiprocessing.set_forkserver_preload(["tests.training.teamwork"])
    mp.start_processes(work, (size, shards, str(folder), names, steps), nprocs=size, start_method="forkserver")


def _whole(results, name, axis):
    """A tensor of one step from its parts: ranks follow each other along the latents."""
    parts = [result[name] for result in results]
    return parts[0] if axis is None else torch.cat(parts, axis)


@pytest.mark.parametrize("share", SHARES)
def test_a_team_makes_the_steps_of_one_process(share, tmp_path):
    """Float32 sums in another order: at unit scale, losses agree to 1e-5 and gradients to 1e-6 over 20 steps."""
    size, shards = SHARES[share]
    names = [name for name in RECIPES if shards == 1 or name != "nested"]
    _start(size, shards, tmp_path, names if share != "both" else ["topk, dead", "batch_topk"])
    for name in names if share != "both" else ["topk, dead", "batch_topk"]:
        sae, steps = alone({**RECIPES[name], "decay": 0.0})
        ranks = [torch.load(tmp_path / name / f"steps-{rank}.pt") for rank in range(size)]
        for number, step in enumerate(steps):
            for rank in ranks:
                for term, value in step["terms"].items():
                    assert rank["steps"][number]["terms"][term] == pytest.approx(value, abs=1e-5), (name, number, term)
            for key, gradient in step["gradients"].items():
                parts = [rank["steps"][number]["gradients"] for rank in ranks[:shards]]
                found = _whole(parts, key, sae.latent_axis.get(key))
                assert (found - gradient).abs().max() < 1e-6, (name, number, key)
        whole = load_dictionary(tmp_path / name)
        for key, weight in sae.state_dict().items():
            assert (weight - whole.state_dict()[key]).abs().max() < 1e-5, (name, key)
        assert len((tmp_path / name / "train.jsonl").read_text().splitlines()) == BASE["steps"]


@pytest.mark.parametrize("size, shards", [(1, 1), (4, 4)])
def test_a_checkpoint_of_two_processes_goes_on_with_any_number(size, shards, tmp_path):
    """Two with half of the latents each, stopped after step 14 (the checkpoint is of step 10), then others."""
    _start(2, 2, tmp_path, ["topk, dead"], steps=14)
    folder = tmp_path / "topk, dead"
    assert sorted(p.name for p in folder.glob("checkpoint*")) == [
        "checkpoint-10.0-of-2.pt", "checkpoint-10.1-of-2.pt", "checkpoint.pt",
    ]  # fmt: skip
    sae, _ = alone({**RECIPES["topk, dead"], "decay": 0.0})
    if size == 1:
        options = {**BASE, **RECIPES["topk, dead"], "decay": 0.0, "checkpoint_every": 10}
        train(X, out=folder, **options)
        assert sorted(p.name for p in folder.glob("checkpoint*")) == ["checkpoint.pt"]
    else:
        _start(size, shards, tmp_path, ["topk, dead"])
    whole = load_dictionary(folder)
    for key, weight in sae.state_dict().items():
        assert (weight - whole.state_dict()[key]).abs().max() < 1e-5, key
    assert len((folder / "train.jsonl").read_text().splitlines()) == BASE["steps"]


def test_a_finished_run_stays_as_it_is_whoever_asks_again(tmp_path):
    options = {**BASE, **RECIPES["topk"], "decay": 0.0, "checkpoint_every": 10}
    whole = train(X, out=tmp_path / "topk", **options).state_dict()
    _start(2, 2, tmp_path, ["topk"])
    again = load_dictionary(tmp_path / "topk").state_dict()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_processes_that_are_not_in_the_same_run_say_so(tmp_path):
    multiprocessing.set_forkserver_preload(["tests.training.teamwork"])
    mp.start_processes(disagree, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    for rank in range(2):
        assert "are not in the same run" in (tmp_path / f"said-{rank}").read_text()


def test_initial_atoms_in_parts_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("vlsae.dictionaries.base.BLOCK", 64)
    draw = lambda own: initial_atoms(torch.Generator().manual_seed(3), 1001, 7, own)  # noqa: E731
    assert torch.equal(torch.cat([draw(slice(0, 500)), draw(slice(500, 1001))]), draw(slice(None)))
    expected = torch.nn.functional.normalize(torch.randn(1001, 7, generator=torch.Generator().manual_seed(3)), dim=1)
    assert torch.equal(draw(slice(None)), expected)


def test_parts_cover_everything_once():
    teams = [Team(rank, 6, 3) for rank in range(6)]
    x = torch.arange(35)
    assert torch.cat([team.share(x) for team in teams[::3]]).tolist() == list(range(35))
    own = [team.own_latents(10) for team in teams]
    assert own[:3] == [slice(0, 3), slice(3, 6), slice(6, 10)] and own[3:] == own[:3]


def test_what_a_team_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="latent_shards=2 does not divide the 1 process"):
        train(X, "topk", latent_shards=2, out=tmp_path, **BASE)
    two, place = Team(0, 2, 2), torch.device("cpu")
    for sizes in ({"n_latents": 8, "k": 9}, {"n_latents": 1, "k": 1}):
        with pytest.raises(ValueError, match="at least one latent a part, and k at most"):
            initial_dictionary(make_config("topk", None, sizes), 24, two)
    for family, engine, message in (
        ("gated", "auto", "cannot train 'gated'"),
        ("nested_dictionary", "auto", "cannot be divided by latents"),
        ("topk", "torch", "works in one process"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_engine(engine, make_config(family, None, {}), place, None, two)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux's /proc")
def test_no_thread_of_a_group_outlives_it(tmp_path):
    """One that still holds a tensor while the interpreter ends aborts the process, whatever its exit code was to be."""
    multiprocessing.set_forkserver_preload(["tests.training.teamwork"])
    mp.start_processes(come_and_go, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    for rank in range(2):
        during, after = map(int, (tmp_path / f"threads-{rank}").read_text().split())
        assert during > 0 and after == 0


def test_a_killed_process_is_reported_and_its_work_goes_on(store, tmp_path):
    """Without torchrun's help; then the same command under torchrun, to the same bytes as a run that was never killed."""
    options = ["--data", store.path, "--family", "topk", "--n-latents", "64", "--k", "4", "--batch-size", "128",
               "--steps", "300", "--checkpoint-every", "10", "--latent-shards", "2", "--threads", "1", "--json"]  # fmt: skip
    command = [*map(str, ["-m", "vlsae", "train", *options, "--out"])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen(
            [sys.executable, *command, str(tmp_path / "killed")],
            env={**os.environ, **where, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        assert both[0].poll() is None, both[0].stderr.read()
        time.sleep(0.02)
    both[1].send_signal(signal.SIGKILL)
    _, said = both[0].communicate(timeout=60)
    assert both[0].returncode == 2
    assert "Process 0 of 2 lost contact with the others" in said and "Traceback" not in said
    both[1].communicate()
    assert not (tmp_path / "killed" / "cfg.json").exists()
    for name in ("killed", "whole"):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        run = subprocess.run(
            [sys.executable, *torchrun, *command, str(tmp_path / name)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(run.stdout)["n_latents"] == 64  # said once
    killed, whole = (load_dictionary(tmp_path / name).state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
