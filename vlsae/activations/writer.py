"""One shard of a store: the forward passes of its images, written aside and put in place by one rename."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from vlsae.activations.format import (
    NORM_EDGES,
    StoreConfig,
    StoreError,
    complete_shards,
    is_pooled,
    select_roles,
    sha256,
    shard_folder,
    site_file,
    write_json,
)
from vlsae.activations.texts import TextSample, TextSource
from vlsae.backbones.base import Backbone
from vlsae.images.decode import UnreadableImage
from vlsae.images.sources import ImageSource, Sample

log = logging.getLogger("vlsae")


def _read_samples(
    source: ImageSource | TextSource, span: range, wanted: int, strict: bool, bar
) -> tuple[list, list, int]:
    """Up to `wanted` readable samples of a span, what was skipped, and the next index."""
    samples: list[tuple[int, Sample | TextSample]] = []
    skipped: list[tuple[int, str]] = []
    index = span.start
    while index < span.stop and len(samples) < wanted:
        try:
            samples.append((index, source[index]))
        except UnreadableImage as error:
            if strict:
                raise
            log.warning("skipped: %s", error)
            skipped.append((index, str(error)))
        index += 1
        bar.update(1)
    return samples, skipped, index


def _keep_positions(config: StoreConfig, indices: list[int]) -> np.ndarray | None:
    """Token positions to keep of every image under random_k, `[B, k]`; a function of seed and image index."""
    if config.tokens != "random_k":
        return None
    kept = np.asarray(select_roles("random_k", config.token_roles))
    return np.stack(
        [np.sort(np.random.default_rng((config.seed, i)).permutation(kept)[: config.random_k]) for i in indices]
    ).astype(np.int32)


class _ShardFile:
    """One growing `.bin` with the statistics of what went into it."""

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype = path, dtype
        self.file = open(path, "wb")  # noqa: SIM115 - closed with the shard
        self.histogram = np.zeros(len(NORM_EDGES) - 1, np.int64)
        self.sum: np.ndarray | float = 0.0

    def add(self, tokens: torch.Tensor) -> None:
        stored = tokens.to(getattr(torch, self.dtype)).cpu().contiguous()
        values = stored.float()
        norms = values.norm(dim=-1).flatten()
        # a finite norm says that all of a token is finite, for a tenth of the time; that of huge values may overflow
        if not (torch.isfinite(norms).all() or torch.isfinite(stored).all()):
            raise StoreError(
                f"{self.path.stem} has values that are not finite in {self.dtype}; "
                "extract with dtype='float32', and check the model if that fails too."
            )
        raw = stored.view(torch.int16).numpy() if self.dtype == "bfloat16" else stored.numpy()
        _write_bytes(self.file, raw.data)
        self.histogram += np.histogram(np.clip(norms.double().numpy(), NORM_EDGES[0], NORM_EDGES[-1]), NORM_EDGES)[0]
        # tokens of an image in float32, images in float64: rounding does not grow with the store
        self.sum = self.sum + values.sum(1).double().sum(0).numpy()

    def close(self) -> None:
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


def _write_bytes(file, data: bytes | memoryview) -> None:
    file.write(data)


def clear_leftovers(root: Path, shards: range) -> None:
    """Remove what an interrupted extraction left of these shards."""
    for number in shards:
        final = shard_folder(root, number)
        for leftover in final.parent.glob(f".partial-{final.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def write_shard(
    root: Path, number: int, model: Backbone, source: ImageSource | TextSource, config: StoreConfig, strict: bool, bar
) -> None:
    """Write one shard under a partial name of its own and rename it.

    Args:
        root: folder of the store; number: of the shard.
        model, source, config: what the store is made of.
        strict: fail at an unreadable image.
        bar: progress bar, moved on by an image at a time.

    Raises:
        StoreError: for values that are not finite, or where another process writes the same shard.
        UnreadableImage: if `strict`.
        OSError: when the disk is full.
    """
    final = shard_folder(root, number)
    partial = final.parent / f".partial-{final.name}-{secrets.token_hex(4)}"
    partial.mkdir(parents=True)
    files = {site: _ShardFile(partial / site_file(site), config.dtype) for site in config.sites}
    try:
        info = _fill(files, partial, model, source, config, range(*config.span(number)), strict, bar)
        for file in files.values():
            file.close()
        info["sha256"] = {path.name: sha256(path) for path in sorted(partial.glob("*.bin"))}
        write_json(partial / "shard.json", info)
        os.replace(partial, final)
    except OSError as error:
        if final.exists() or not partial.exists():
            raise StoreError(
                f"Another process writes shard {number} of {root} too; start every rank once, "
                "and run this one again when that process has ended."
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = complete_shards(root).values()
        raise OSError(
            error.errno,
            f"The disk is full: {root} keeps its {len(there)} complete shards "
            f"({sum(s['next'] - s['first'] for s in there)} of {len(source)} images). "
            "Make room and run the same command again; it continues from there.",
        ) from error
    finally:
        for file in files.values():
            with suppress(OSError):  # what is still buffered cannot be written to a full disk either
                file.file.close()
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def _fill(files, partial, model, source, config, span, strict, bar) -> dict:
    info = {"first": span.start, "ids": [], "names": [], "labels": [], "sizes": [], "indices": [], "skipped": []}
    roles = ["cls"] if all(is_pooled(site) for site in config.sites) else model.token_roles
    positions = None if config.tokens == "random_k" else select_roles(config.tokens, roles)
    next_index = span.start
    with open(partial / "tokens.bin", "wb") as token_file:
        while next_index < span.stop:
            rest = range(next_index, span.stop)
            samples, skipped, next_index = _read_samples(source, rest, config.batch_size, strict, bar)
            info["skipped"] += skipped
            if not samples:
                continue
            indices = [i for i, _ in samples]
            found = model.tokens_at([s.content for _, s in samples], config.sites)
            chosen = _keep_positions(config, indices)
            if chosen is not None:
                _write_bytes(token_file, chosen.tobytes())
            for site, tokens in found.items():
                if is_pooled(site):
                    kept = tokens
                elif chosen is not None:
                    at = torch.from_numpy(chosen.astype(np.int64)).to(tokens.device)
                    kept = torch.gather(tokens, 1, at[..., None].expand(-1, -1, tokens.shape[-1]))
                else:
                    kept = tokens if len(positions) == tokens.shape[1] else tokens[:, positions]
                files[site].add(kept)
            info["indices"] += indices
            for field, value in (("ids", "id"), ("names", "name"), ("labels", "label")):
                info[field] += [getattr(s, value) for _, s in samples]
            info["sizes"] += [list(s.size) for _, s in samples]
    if config.tokens != "random_k":
        (partial / "tokens.bin").unlink()
    info["next"] = next_index
    info["d"] = {site: len(np.atleast_1d(file.sum)) for site, file in files.items() if info["ids"]}
    info["norm_histogram"] = {site: file.histogram.tolist() for site, file in files.items()}
    info["sums"] = {site: np.atleast_1d(file.sum).tolist() for site, file in files.items()}
    return info
