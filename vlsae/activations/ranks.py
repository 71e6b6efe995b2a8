"""Who writes which shards when several jobs fill one store; they need no word from each other."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vlsae.activations.format import StoreError
from vlsae.activations.reader import ActivationStore


def shards_of(rank: int, world_size: int, n_shards: int) -> range:
    """The shards that a rank writes: neighbours, so that it reads one run of images.

    Raises:
        StoreError: for a rank outside the world, or more ranks than shards.

    Example:
        >>> [list(shards_of(rank, 3, 7)) for rank in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise StoreError(f"rank={rank} of world_size={world_size} does not exist; ranks go from 0 to world_size - 1.")
    if world_size > max(1, n_shards):
        raise StoreError(
            f"world_size={world_size} is more than the {n_shards} shards of this store; "
            "use fewer ranks, or a smaller shard_images."
        )
    return range(rank * n_shards // world_size, (rank + 1) * n_shards // world_size)


def missing_ranks(store: ActivationStore, world_size: int) -> list[int]:
    """The ranks that have not written all their shards.

    Args:
        store: as opened after some of the jobs have ended.
        world_size: number of jobs.
    """
    missing = set(store.missing)
    return [r for r in range(world_size) if missing & set(shards_of(r, world_size, store.config.n_shards))]


def job_place(
    rank: int | None = None, world_size: int | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Rank and number of ranks of this job: as given, else as torchrun says, else 0 of 1.

    A job array's number is not taken for a rank by itself, since arrays also run over models or folders.

    Args:
        rank, world_size: as given by the user.
        environment: where torchrun says RANK and WORLD_SIZE; that of this process where None.

    Raises:
        StoreError: where only one of the two is known.

    Example:
        >>> job_place(None, None, {"RANK": "2", "WORLD_SIZE": "8"})
        (2, 8)
        >>> job_place(2, 4, {"RANK": "0", "WORLD_SIZE": "8"})
        (2, 4)
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank = int(environment["RANK"]) if rank is None else rank
        world_size = int(environment["WORLD_SIZE"]) if world_size is None else world_size
    if rank is None and world_size is None:
        return 0, 1
    if rank is None or world_size is None:
        raise StoreError(f"rank={rank} and world_size={world_size} were given; give both, such as 0 and 4.")
    return rank, world_size


def job_device(device: str, environment: Mapping[str, str] | None = None) -> str:
    """The device as given; under torchrun, "cuda" is the GPU with this process's number on its machine.

    Example:
        >>> job_device("cuda", {"LOCAL_RANK": "3"}), job_device("cuda:0", {"LOCAL_RANK": "3"}), job_device("cuda", {})
        ('cuda:3', 'cuda:0', 'cuda')
    """
    environment = os.environ if environment is None else environment
    return f"cuda:{environment['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in environment else device
