"""What every process of a team does in the tests; started by `torch.multiprocessing`."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from vlsae.training import train
from vlsae.training.run import Run
from vlsae.training.team import Team, _leave

X = (torch.randn(3000, 24, generator=torch.Generator().manual_seed(0)) + 0.3) / 24**0.5  # about unit length
X[1::7] = X[::7][: len(X[1::7])]  # equal tokens have equal codes, so that there are ties
BASE = {
    "n_latents": 202,
    "steps": 20,
    "batch_size": 151,
    "lr": 1e-3,
    "warmup_steps": 4,
    "progress": False,
    "log_every": 1,
}
RECIPES = {
    "topk": {"arch": "topk", "k": 5},
    "topk, dead": {"arch": "topk", "k": 3, "dead_after_tokens": 302, "aux_k": 16, "aux_coefficient": 1.0},
    "topk, clipped": {"arch": "topk", "k": 5, "clip_gradient": 0.05, "loss_scale": "variance"},
    "abs_topk": {"arch": "abs_topk", "k": 5, "dead_after_tokens": 302},
    "batch_topk": {"arch": "batch_topk", "k": 5, "dead_after_tokens": 302, "clip_gradient": 1.0},
    "relu, steered": {"arch": "relu", "l1": 0.3, "dead_policy": "auxk", "target_l0": 20, "l1_relative": True},
    "a token a batch": {"arch": "batch_topk", "k": 5, "batch_size": 1},
    "nested": {"arch": "nested_dictionary", "k": 5, "prefixes": [10, 70, 202], "dead_after_tokens": 302},
}


@contextmanager
def recorded():
    """A list that gets the loss terms and all gradients of every step, before they are constrained."""
    steps, original = [], Run.step_weights

    def step_weights(self):
        named = self.dictionary.named_parameters()
        steps.append(
            {
                "terms": {name: float(term.detach()) for name, term in self.terms.items()},
                "gradients": {name: p.grad.clone() for name, p in named if p.grad is not None},
            }
        )
        original(self)

    Run.step_weights = step_weights
    try:
        yield steps
    finally:
        Run.step_weights = original


def alone(recipe: dict):
    """The recipe in one process, by autograd: the dictionary and its steps."""
    with recorded() as steps:
        return train(X, engine="torch", **{**BASE, **recipe}), steps


def work(rank: int, size: int, shards: int, folder: str, names: list[str], steps: int) -> None:
    """Train recipes in a team; each in `folder/name`, with `steps.pt` of this rank beside it."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{size}-{steps}", rank=rank, world_size=size)
    for name in names:
        out = Path(folder) / name
        options = {**BASE, **RECIPES[name], "decay": 0.0, "checkpoint_every": 10}
        if steps < BASE["steps"]:
            stop_after(steps, out, options, shards)
            continue
        with recorded() as found:
            sae = train(X, latent_shards=shards, out=out, **options)
        torch.save({"steps": found, "state": sae.state_dict()}, out / f"steps-{rank}.pt")
    dist.destroy_process_group()


def come_and_go(rank: int, size: int, folder: str) -> None:
    """Exchange something and leave; write down which threads that left behind."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    before = _threads()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    Team.gather_up(size).over_latents(torch.ones(3))
    during = _threads()
    _leave()
    (Path(folder) / f"threads-{rank}").write_text(f"{len(during - before)} {len(_threads() - before)}")


def _threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def disagree(rank: int, size: int, folder: str) -> None:
    """Start with another seed in every process; write down what is said."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    try:
        train(X, "topk", k=5, seed=rank, **BASE)
    except ValueError as error:
        (Path(folder) / f"said-{rank}").write_text(str(error))
    dist.destroy_process_group()


def stop_after(steps: int, out: Path, options: dict, shards: int) -> None:
    """Train until that many steps are done, as a kill would leave it."""

    class Stop(Exception):
        pass

    original = Run.finish_step

    def finish_step(self, *args):
        row = original(self, *args)
        if self.step == steps:
            raise Stop
        return row

    Run.finish_step = finish_step
    try:
        train(X, latent_shards=shards, out=out, **options)
    except Stop:
        pass
    finally:
        Run.finish_step = original
