"""Processes that train one dictionary together, by sharing tokens, latents, or both."""

from __future__ import annotations

import atexit
import gc
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlsae.activations.ranks import job_device
from vlsae.dictionaries.selection import Rows, largest
from vlsae.dictionaries.selection_tensors import best_of_columns

PATIENCE = timedelta(hours=1)  # others may be writing a large checkpoint; a dead process is noticed at once


class LostWorker(RuntimeError):
    """Another process of the team is gone."""


def _cut(n: int, part: int, parts: int) -> slice:
    return slice(n * part // parts, n * (part + 1) // parts)


@lru_cache
def _groups(size: int, shards: int) -> tuple[list, list]:
    """Process groups of equal latents, and of equal tokens; made once, since devices keep memory for each."""
    atexit.register(_leave)
    parts = size // shards
    tokens = [dist.new_group([i * shards + s for i in range(parts)]) for s in range(shards)]
    latents = [dist.new_group([i * shards + s for s in range(shards)]) for i in range(parts)]
    return tokens, latents


def _leave() -> None:
    """Leave all groups, so that their threads end before the interpreter does: one that then still holds a tensor aborts."""
    _groups.cache_clear()
    gc.collect()  # frames of an error that hold a group
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Team:
    """This process and its place: process `rank` of `size` has part `rank % shards` of the latents.

    Processes with the same latents (`tokens`) divide every batch among them, those with the same tokens (`latents`) the
    dictionary. One process alone has all of both, and every method then returns what it is given.

    Args:
        rank, size: of this process, and of the team.
        shards: parts of the dictionary; the batch has `size / shards` parts.
        tokens, latents: process groups, see above.

    Example:
        >>> Team().share(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    rank: int = 0
    size: int = 1
    shards: int = 1
    tokens: Any = None
    latents: Any = None

    @classmethod
    def gather_up(cls, shards: int = 1, device: str = "cpu") -> Team:
        """The team of the processes that torchrun started, or that `torch.distributed` already knows.

        Args:
            shards: parts of the dictionary.
            device: of the tensors to be exchanged.

        Raises:
            ValueError: for a number of parts that does not divide the number of processes.
        """
        size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
        if shards < 1 or size % shards:
            raise ValueError(
                f"latent_shards={shards} does not divide the {size} process(es) there are; start a multiple of it, as in "
                f"`torchrun --standalone --nproc-per-node {max(2, shards)} -m vlsae train --latent-shards {shards}`."
            )
        if size == 1:
            return cls()
        place = torch.device(job_device(device))
        if place.index is not None:
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
        rank, (tokens, latents) = dist.get_rank(), _groups(size, shards)
        return cls(rank, size, shards, tokens[rank % shards], latents[rank // shards])

    @property
    def leads(self) -> bool:
        """Whether this process writes what only one should."""
        return self.rank == 0

    @property
    def shard(self) -> int:
        """Which part of the latents this process has."""
        return self.rank % self.shards

    def own_tokens(self, n: int) -> slice:
        """This process's part of a batch of `n`."""
        return _cut(n, self.rank // self.shards, self.size // self.shards)

    def own_latents(self, n: int) -> slice:
        """This process's part of `n` latents."""
        return _cut(n, self.shard, self.shards)

    def share(self, x: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return x[self.own_tokens(len(x))]

    # ---- exchange ------------------------------------------------------------------------------------------------

    def over_tokens(self, value: Tensor) -> Tensor:
        """Sum over parts of the batch."""
        return value if self.size == self.shards else self._reduced(value, dist.ReduceOp.SUM, self.tokens)

    def over_latents(self, value: Tensor) -> Tensor:
        """Sum over parts of the dictionary."""
        return value if self.shards == 1 else self._reduced(value, dist.ReduceOp.SUM, self.latents)

    def over_all(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        return value if self.size == 1 else self._reduced(value, dist.ReduceOp.SUM, None)

    def least(self, value: Tensor) -> Tensor:
        """The smallest of all processes."""
        return value if self.size == 1 else self._reduced(value, dist.ReduceOp.MIN, None)

    def anywhere(self, mask: Tensor) -> Tensor:
        """Whether it is true, bool, for any part of the batch."""
        if self.size == self.shards:
            return mask
        return self._reduced(mask.int(), dist.ReduceOp.MAX, self.tokens).bool()

    def require_same(self, facts: str) -> None:
        """Raise ValueError, in all processes, unless all were given the same facts about the run."""
        place = self._place()
        number = int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=7).digest(), "big")
        both = torch.tensor([number, -number], device=place)
        if int(self.least(both).sum()) != 0:
            raise ValueError(
                "The processes of the team are not in the same run: their recipe, their data or the checkpoint that they "
                "found differ. Start all with the same arguments, and with a folder `out` that all of them see."
            )

    @staticmethod
    def _place() -> torch.device:
        nccl = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self._together(dist.barrier)

    def best(self, rows: Rows, k: int, signed: bool = False) -> Rows:
        """Of own codes, at most k a row, those that are among the row's k best of all latents; ties: lower latent."""
        if self.shards == 1:
            return rows
        numbers = rows.numbers
        place = torch.arange(len(rows.val), device=rows.val.device) - rows.ptr[numbers]
        scores = rows.val.new_full((len(rows), k), -torch.inf)
        scores[numbers, place] = rows.val.abs() if signed else rows.val
        theirs = [torch.empty_like(scores) for _ in range(self.shards)]
        self._together(dist.all_gather, theirs, scores, group=self.latents)
        chosen = best_of_columns(torch.cat(theirs, 1), k)[:, self.shard * k : (self.shard + 1) * k]
        return rows.keep(chosen[numbers, place])

    def largest(self, rows: Rows, wanted: int, keys: Callable[[Tensor], Tensor]) -> Tensor:
        """Which of own codes are among the `wanted` largest of all, bool `[nnz]`.

        Args:
            rows: own codes.
            wanted: number in all.
            keys: numbers of codes among all, by which equal values are put in order.
        """
        if self.size == 1:
            return largest(rows.val, wanted)
        everyone = self._gather(rows.val)
        if len(everyone) <= wanted:
            return torch.ones_like(rows.val, dtype=torch.bool)
        least = everyone.kthvalue(len(everyone) - wanted + 1).values
        keep = rows.val > least
        ties = (rows.val == least).nonzero()[:, 0]
        own = keys(ties)
        last = self._gather(own).sort().values[wanted - int((everyone > least).sum()) - 1]
        keep[ties[own <= last]] = True
        return keep

    def _gather(self, values: Tensor) -> Tensor:
        """The values `[any]` of all processes, one after the other."""
        lengths = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.size)]
        self._together(dist.all_gather, lengths, torch.tensor([len(values)], device=values.device))
        longest = int(torch.cat(lengths).max())
        padded = values.new_zeros(longest)
        padded[: len(values)] = values
        theirs = [torch.empty_like(padded) for _ in range(self.size)]
        self._together(dist.all_gather, theirs, padded)
        return torch.cat([part[: int(n)] for part, n in zip(theirs, lengths, strict=True)])

    def _reduced(self, value: Tensor, how, group) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        self._together(dist.all_reduce, value, op=how, group=group)
        return value

    def _together(self, collective: Callable, *args, **options) -> None:
        try:
            collective(*args, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise LostWorker(
                f"Process {self.rank} of {self.size} lost contact with the others ({str(error).splitlines()[0][:120]}). Look "
                "for the first error among their messages; the same command continues from the last checkpoint."
            ) from error


ALONE = Team()
