"""A store as tensors: by image, in order, or shuffled with a state of three numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.activations.format import (
    DTYPES,
    StoreError,
    complete_shards,
    is_pooled,
    read_config,
    sha256,
    shard_folder,
    site_file,
)
from vlsae.images.geometry import Geometry

BUFFER_IMAGES = 1024


@dataclass(frozen=True)
class ReaderState:
    """Everything needed to continue a shuffled pass: seed, rank, and tokens already given out."""

    seed: int = 0
    rank: int = 0
    position: int = 0


class ActivationStore:
    """Activations on disk, memory-mapped.

    Args:
        path: folder of the store.
        site: which of its sites `images`, `batches` and `shuffled` read; the first where None.

    Attributes:
        config: the fields of `config.json`.
        n_images, n_tokens, d: images, stored tokens an image, and width, which is 0 before an image could be read.
        ids, names, labels, sizes: one entry an image (content id, source, class number, original width and height).

    Raises:
        StoreError: for a folder that is no store, holds no complete shard, or lacks the site.
    """

    def __init__(self, path: str | Path, site: str | None = None):
        self.path = Path(path)
        self.config = read_config(self.path)
        found = complete_shards(self.path)
        self._present = set(found)
        self._numbers = [number for number, shard in found.items() if shard["ids"]]
        self.shards = [found[number] for number in self._numbers]
        if not found:
            raise StoreError(f"{self.path} has no complete shard yet; run vlsae.extract on it again.")
        self.site = site or self.config.sites[0]
        if self.site not in self.config.sites:
            raise StoreError(f"{self.path} has no site {self.site}; it holds {', '.join(self.config.sites)}.")
        self.d = int(self.shards[0]["d"][self.site]) if self.shards else 0
        self.n_tokens = 1 if is_pooled(self.site) else self.config.random_k or len(self.config.token_roles)
        for field in ("ids", "names", "labels", "sizes", "indices"):
            setattr(self, field, [value for s in self.shards for value in s[field]])
        self.n_images = len(self.ids)
        self._starts = np.cumsum([0, *(len(s["ids"]) for s in self.shards)])

    @property
    def complete(self) -> bool:
        """Whether extraction ran to its end, on all ranks."""
        return (self.path / "manifest.json").exists()

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that were not there when the store was opened; `missing_ranks` says whose they are."""
        return [n for n in range(self.config.n_shards) if n not in self._present] if self.config.schema > 1 else []

    @property
    def manifest(self) -> dict:
        if not self.complete:
            lacks = "".join(
                f" Shard {n} (images {first} to {stop - 1}) is missing."
                for n, (first, stop) in ((n, self.config.span(n)) for n in self.missing[:3])
            )
            more = f" So are {len(self.missing) - 3} more." if len(self.missing) > 3 else ""
            raise StoreError(
                f"{self.path} is not complete; run the extraction again, on every rank, to finish it.{lacks}{more}"
            )
        return json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))

    @property
    def fingerprint(self) -> str:
        """What a training run must find again to be continued: the model, its precision, the site, and the images in order."""
        digest = hashlib.blake2b("\n".join(self.ids).encode(), digest_size=8).hexdigest()
        exact = self.config.precision == "float32"  # which older runs do not name
        model = self.config.weight_hash + ("" if exact else f"/{self.config.precision}")
        return f"{model}/{self.site}/{self.config.tokens}/{self.n_tokens}/{digest}"

    @property
    def geometry(self) -> Geometry:
        return Geometry(**self.config.geometry)

    @property
    def token_roles(self) -> list[str]:
        return ["cls"] if is_pooled(self.site) else self.config.token_roles

    @property
    def class_names(self) -> list[str]:
        return self.config.class_names

    def __len__(self) -> int:
        return self.n_images * self.n_tokens

    def __repr__(self) -> str:
        return f"ActivationStore({self.path}, {self.site}, {self.n_images} images x {self.n_tokens} tokens x {self.d})"

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        maps = []
        for i, shard in enumerate(self.shards):
            path = shard_folder(self.path, self._numbers[i]) / site_file(self.site)
            shape = (len(shard["ids"]), self.n_tokens, self.d)
            expected = int(np.prod(shape)) * np.dtype(DTYPES[self.config.dtype]).itemsize
            if not path.exists() or path.stat().st_size != expected:
                size = path.stat().st_size if path.exists() else "missing"
                raise StoreError(f"{path} is {size}, expected {expected} bytes; delete its shard and extract again.")
            maps.append(np.memmap(path, DTYPES[self.config.dtype], "r", shape=shape))
        return maps

    def _tensor(self, raw: np.ndarray) -> Tensor:
        """Raw values as float32, in memory of their own."""
        tensor = torch.from_numpy(raw if raw.flags.writeable else np.array(raw))  # torch takes no read-only memory
        if self.config.dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        return tensor.float()

    def _raw(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The stored values of images `start` to `stop`, a piece a shard."""
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        last = int(np.searchsorted(self._starts, stop, side="left"))
        for i in range(first, min(last, len(self._maps))):
            low, high = max(start, self._starts[i]), min(stop, self._starts[i + 1])
            if low < high:
                yield self._maps[i][low - self._starts[i] : high - self._starts[i]]

    def images(self, start: int, stop: int) -> Tensor:
        """Activations of images `start` to `stop`, float32 `[n, n_tokens, d]`."""
        parts = [self._tensor(raw) for raw in self._raw(start, stop)]
        if not parts:
            raise StoreError(f"Images {start} to {stop} were asked for, but the store holds {self.n_images}.")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __getitem__(self, index: int) -> Tensor:
        index = range(self.n_images)[index]
        return self.images(index, index + 1)[0]

    def token_positions(self, index: int) -> np.ndarray:
        """Positions in the model's sequence of the tokens of an image (under random_k they differ by image)."""
        if self.config.tokens != "random_k" or is_pooled(self.site):
            return np.arange(self.n_tokens)
        shard = int(np.searchsorted(self._starts, index, side="right") - 1)
        path = shard_folder(self.path, self._numbers[shard]) / "tokens.bin"
        table = np.memmap(path, np.int32, "r", shape=(len(self.shards[shard]["ids"]), self.n_tokens))
        return np.asarray(table[index - self._starts[shard]])

    def batches(self, n_images: int = 64) -> Iterator[tuple[int, Tensor]]:
        """All images in order: `(index of the first, [n, n_tokens, d])`."""
        for start in range(0, self.n_images, n_images):
            yield start, self.images(start, min(start + n_images, self.n_images))

    def embeddings(self) -> Tensor | None:
        """Unit-norm embeddings of all images, float32 `[n_images, e]`; None where no pooled site was extracted."""
        pooled = next(filter(is_pooled, self.config.sites), None)
        if pooled is None:
            return None
        return F.normalize(ActivationStore(self.path, pooled).images(0, self.n_images)[:, 0], dim=-1)

    def mean(self) -> Tensor:
        """Mean of all stored tokens, float32 `[d]`, from sums kept with every shard."""
        total = np.sum([s["sums"][self.site] for s in self.shards], axis=0)
        return torch.from_numpy(total / len(self)).float()

    def shuffled(
        self,
        batch_size: int,
        state: ReaderState | None = None,
        *,
        world_size: int = 1,
        select: np.ndarray | None = None,
    ) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass over all tokens in random order, each exactly once, with the state after every batch.

        Images are permuted, then tokens within buffers of 1,024 images: memory is one buffer in the store's dtype, and any
        two images can meet. The order is a function of `state.seed` and `state.rank`; a pass continued from a state gives
        the same batches as one that was never stopped.

        Args:
            batch_size: tokens a batch; the last is smaller.
            state: where to begin; the start of seed 0 where None.
            world_size: number of ranks; rank `r` reads every `world_size`-th image of the permutation.
            select: bool `[n_images, n_tokens]`, tokens to use; all where None.

        Yields:
            `(x, state)`: float32 `[<= batch_size, d]` and the `ReaderState` with which to continue after it.
        """
        state = state or ReaderState()
        order = np.random.default_rng((state.seed, 0)).permutation(self.n_images)[state.rank :: world_size]
        groups = [np.sort(order[i : i + BUFFER_IMAGES]) for i in range(0, len(order), BUFFER_IMAGES)]
        sizes = [self.n_tokens * len(g) if select is None else int(select[g].sum()) for g in groups]
        ends = np.cumsum(sizes)
        given = ends // batch_size * batch_size  # tokens given out once a group was read; the rest joins the next
        given[-1:] = ends[-1:]
        done = int((given <= state.position).sum())
        if done == len(groups):
            return
        passed = int(given[done - 1]) if done else 0
        begin = int(np.searchsorted(ends, passed, side="right"))  # the group that holds the first token not yet given
        skip = passed - int(ends[begin] - sizes[begin])
        raw = DTYPES[self.config.dtype]
        buffer = np.empty((max(map(len, groups)), self.n_tokens, self.d), raw)
        kept = np.empty((0, self.d), raw)  # given out neither with the last group nor yet with this one
        for number in range(begin, len(groups)):
            rows = self._read_into(buffer, groups[number])
            order = self._order(groups[number], number, state, select)[skip if number == begin else 0 :]
            total = len(kept) + len(order)
            stop = total if number == len(groups) - 1 else total // batch_size * batch_size
            for start in range(0, stop, batch_size):
                end = min(start + batch_size, stop)
                passed += end - start
                if passed > state.position:
                    # gathered in the store's dtype: rows of 16 bits move by half the bytes, and numpy copies whole rows
                    batch = rows[order[max(0, start - len(kept)) : end - len(kept)]]
                    batch = batch if start >= len(kept) else np.concatenate([kept, batch])
                    yield self._tensor(batch), ReaderState(state.seed, state.rank, passed)
            kept = np.concatenate([kept[stop:], rows[order[max(0, stop - len(kept)) :]]])

    def _read_into(self, buffer: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Copy some images to the front of a buffer, in sequence where they are neighbours; its rows are tokens."""
        at = 0
        for run in _runs(members):
            for part in self._raw(*run):
                buffer[at : at + len(part)] = part
                at += len(part)
        return buffer[:at].reshape(-1, self.d)

    def _order(self, members: np.ndarray, number: int, state: ReaderState, select) -> np.ndarray:
        """The random order of group `number`: rows of its images, those that are chosen."""
        n = len(members) * self.n_tokens
        chosen = np.arange(n) if select is None else np.flatnonzero(select[members].ravel())
        rng = np.random.default_rng((state.seed, 1 + number, state.rank))
        return chosen[rng.permutation(len(chosen))]

    def verify(self) -> None:
        """Compare every file with its checksum; raises StoreError naming the damaged ones."""
        expected = {
            shard_folder(self.path, number) / name: value
            for number, shard in zip(self._numbers, self.shards, strict=True)
            for name, value in shard["sha256"].items()
        }
        if self.complete:
            for number, value in enumerate(self.manifest["shard_sha256"]):
                expected[shard_folder(self.path, number) / "shard.json"] = value
        damaged = [str(path) for path, value in expected.items() if not path.exists() or sha256(path) != value]
        if damaged:
            raise StoreError(
                f"Damaged: {', '.join(damaged)} (checksum differs). Delete these shards and extract again."
            )


def _runs(members: np.ndarray) -> Iterator[tuple[int, int]]:
    """Sorted image numbers as runs `(start, stop)` of neighbours."""
    breaks = np.flatnonzero(np.diff(members) != 1) + 1
    for run in np.split(members, breaks):
        yield int(run[0]), int(run[-1]) + 1
