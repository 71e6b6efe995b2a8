"""From a model and images to a store on disk, resumable after a kill at any moment."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vlsae.activations.format import (
    NORM_EDGES,
    TOKEN_POLICIES,
    StoreConfig,
    StoreError,
    complete_shards,
    config_dict,
    norm_quantiles,
    read_config,
    select_roles,
    sha256,
    shard_folder,
    site_file,
    write_json,
)
from vlsae.activations.reader import ActivationStore
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.backbones.site import Site
from vlsae.images.decode import UnreadableImage
from vlsae.images.sources import ImageSource, Sample, load_images

log = logging.getLogger("vlsae")
HIGH_NORM_FACTOR = 4.0
HIGH_NORM_SHARE = 1e-3


def extract(
    model: Backbone | str,
    images,
    site: str | Site | Sequence[str | Site] = "vision.-2.resid_post",
    out: str | Path = "runs/activations",
    *,
    tokens: str = "patches",
    random_k: int = 0,
    dtype: str = "float16",
    batch_size: int = 32,
    shard_images: int = 512,
    seed: int = 0,
    strict: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Write the activations of images to disk; call again with the same arguments to continue after any interruption.

    Args:
        model: a `Backbone` or its name.
        images: anything `vlsae.load_images` opens.
        site: one site or several of one tower, all read in one forward pass that ends at the last of them.
        out: folder of the store.
        tokens: "patches", "cls", "patches+cls", "all" (with registers) or "random_k" (`random_k` tokens an image).
        random_k: tokens kept of every image under `tokens="random_k"`.
        dtype: "float16", "bfloat16" or "float32".
        batch_size: images a forward pass.
        shard_images: images a shard, rounded up to a multiple of `batch_size`; at most this much work is lost.
        seed: of "random_k".
        strict: fail at the first unreadable image instead of skipping it with a warning.
        progress: show a progress bar.

    Returns:
        The complete `ActivationStore`.

    Raises:
        StoreError: when `out` holds a store made with other arguments, or no image could be read.
        UnreadableImage: for an unreadable image, if `strict`.
        OSError: when the disk is full; what was written stays valid and a second call continues.

    Example:
        >>> import tempfile, vlsae
        >>> store = vlsae.extract("tiny", vlsae.world.scenes(4), out=tempfile.mkdtemp() + "/store", progress=False)
        >>> store.n_images, store.n_tokens, store.d
        (4, 64, 192)
    """
    model, source, root = load_model(model), load_images(images), Path(out)
    sites = [Site.parse(s) for s in ([site] if isinstance(site, (str, Site)) else site)]
    sites = [s.resolve(len(model.blocks(s.tower))) for s in sites]
    config = _plan(model, source, sites, tokens, random_k, dtype, batch_size, shard_images, seed)
    _open(root, config)
    done = complete_shards(root)
    _same_images(root, done, source)
    start = done[-1]["next"] if done else 0
    bar = tqdm(total=len(source), initial=start, desc="extract", unit="image", disable=not progress)
    with bar:
        while start < len(source):
            start = _write_shard(root, len(done), model, source, config, start, strict, bar)
            done.append({})
    return _finish(root, config)


def _plan(model, source, sites, tokens, random_k, dtype, batch_size, shard_images, seed) -> StoreConfig:
    towers = {s.tower for s in sites}
    if towers != {"vision"}:
        raise StoreError(
            f"Images have activations in the vision tower; sites of {', '.join(sorted(towers))} were given."
        )
    if any(s.stream == "pooled" for s in sites) and len(sites) > 1:
        raise StoreError("A pooled site has one token an image; extract it to a store of its own.")
    roles = ["cls"] if sites[0].stream == "pooled" else list(model.token_roles)
    if sites[0].stream == "pooled":
        tokens = "cls"
    if tokens not in TOKEN_POLICIES:
        raise StoreError(f"tokens={tokens!r} is unknown; use one of {', '.join(TOKEN_POLICIES)}.")
    kept = select_roles(tokens, roles)
    if tokens == "random_k" and not 1 <= random_k <= len(kept):
        raise StoreError(f"random_k={random_k} must lie between 1 and the {len(kept)} tokens of this model.")
    if batch_size < 1 or shard_images < 1:
        raise StoreError(f"batch_size={batch_size} and shard_images={shard_images} must be at least 1.")
    return StoreConfig(
        model=model.spec,
        weight_hash=model.weight_hash,
        source=source.spec,
        n_source=len(source),
        class_names=source.class_names,
        sites=[str(s) for s in sites],
        dtype=dtype,
        tokens=tokens,
        random_k=random_k if tokens == "random_k" else 0,
        seed=seed,
        shard_images=-(-shard_images // batch_size) * batch_size,
        batch_size=batch_size,
        token_roles=roles if tokens == "random_k" else [roles[i] for i in kept],
        geometry=model.geometry.as_dict(),
    )


def _open(root: Path, config: StoreConfig) -> None:
    """Create the folder, or make sure that the one there was begun with the same arguments; drop unfinished work."""
    if (root / "config.json").exists():
        before, now = config_dict(read_config(root)), config_dict(config)
        changed = [f"{k}: {before[k]!r} there, {now[k]!r} now" for k in now if before[k] != now[k]]
        if changed:
            raise StoreError(f"{root} was begun with other arguments ({'; '.join(changed)}); use another folder.")
    else:
        (root / "shards").mkdir(parents=True, exist_ok=True)
        write_json(root / "config.json", config_dict(config))
    for leftover in [*root.glob(".partial*"), *(root / "shards").glob(".partial*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _same_images(root: Path, shards: list[dict], source: ImageSource) -> None:
    """A store is continued, or found finished, only with the images it was begun with; the first stored one tells."""
    first = next((s for s in shards if s["ids"]), None)
    if first is not None and source[first["indices"][0]].id != first["ids"][0]:
        raise StoreError(
            f"{root} was begun with other images (number {first['indices'][0]} differs); use another folder."
        )


def _read_samples(source: ImageSource, start: int, wanted: int, strict: bool, bar) -> tuple[list, list, int]:
    """Up to `wanted` readable samples from `start` on, what was skipped, and the next index."""
    samples: list[tuple[int, Sample]] = []
    skipped: list[tuple[int, str]] = []
    index = start
    while index < len(source) and len(samples) < wanted:
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
        if not torch.isfinite(stored).all():
            raise StoreError(
                f"{self.path.stem} has values that are not finite in {self.dtype}; "
                "extract with dtype='float32', and check the model if that fails too."
            )
        raw = stored.view(torch.int16).numpy() if self.dtype == "bfloat16" else stored.numpy()
        _write_bytes(self.file, raw.tobytes())
        flat = stored.flatten(0, 1).double()
        self.histogram += np.histogram(np.clip(flat.norm(dim=-1).numpy(), NORM_EDGES[0], NORM_EDGES[-1]), NORM_EDGES)[0]
        self.sum = self.sum + flat.sum(0).numpy()

    def close(self) -> None:
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


def _write_bytes(file, data: bytes) -> None:
    file.write(data)


def _write_shard(root, number, model, source, config, start, strict, bar) -> int:
    """Write one shard under a partial name and rename it; returns the next source index."""
    final = shard_folder(root, number)
    partial = final.parent / f".partial-{final.name}"
    partial.mkdir(parents=True)
    files = {site: _ShardFile(partial / site_file(site), config.dtype) for site in config.sites}
    try:
        info = _fill(files, partial, model, source, config, start, strict, bar)
        for file in files.values():
            file.close()
        info["sha256"] = {path.name: sha256(path) for path in sorted(partial.glob("*.bin"))}
        write_json(partial / "shard.json", info)
        os.replace(partial, final)
        return info["next"]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"The disk is full: {root} keeps its {number} complete shards ({start} of {len(source)} images). "
            "Make room and run the same command again; it continues from there.",
        ) from error
    finally:
        for file in files.values():
            with suppress(OSError):  # what is still buffered cannot be written to a full disk either
                file.file.close()
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def _fill(files, partial, model, source, config, start, strict, bar) -> dict:
    info = {"first": start, "ids": [], "names": [], "labels": [], "sizes": [], "indices": [], "skipped": []}
    roles = ["cls"] if config.sites[0].endswith("pooled") else model.token_roles
    positions = None if config.tokens == "random_k" else select_roles(config.tokens, roles)
    next_index = start
    with open(partial / "tokens.bin", "wb") as token_file:
        while len(info["ids"]) < config.shard_images and next_index < len(source):
            samples, skipped, next_index = _read_samples(source, next_index, config.batch_size, strict, bar)
            info["skipped"] += skipped
            if not samples:
                continue
            indices = [i for i, _ in samples]
            found = model.tokens_at([s.image for _, s in samples], config.sites)
            chosen = _keep_positions(config, indices)
            if chosen is not None:
                _write_bytes(token_file, chosen.tobytes())
            for site, tokens in found.items():
                if chosen is not None:
                    at = torch.from_numpy(chosen.astype(np.int64)).to(tokens.device)
                    kept = torch.gather(tokens, 1, at[..., None].expand(-1, -1, tokens.shape[-1]))
                else:
                    kept = tokens if len(positions) == tokens.shape[1] else tokens[:, positions]
                files[site].add(kept)
            info["indices"] += indices
            for field, value in (("ids", "id"), ("names", "name"), ("labels", "label")):
                info[field] += [getattr(s, value) for _, s in samples]
            info["sizes"] += [list(s.image.size) for _, s in samples]
    if config.tokens != "random_k":
        (partial / "tokens.bin").unlink()
    info["next"] = next_index
    info["d"] = {site: len(np.atleast_1d(file.sum)) for site, file in files.items() if info["ids"]}
    info["norm_histogram"] = {site: file.histogram.tolist() for site, file in files.items()}
    info["sums"] = {site: np.atleast_1d(file.sum).tolist() for site, file in files.items()}
    return info


def _finish(root: Path, config: StoreConfig) -> ActivationStore:
    shards = complete_shards(root)
    n_images = sum(len(s["ids"]) for s in shards)
    if n_images == 0:
        messages = "; ".join(message for s in shards for _, message in s["skipped"][:3])
        raise StoreError(f"None of the {len(shards) and shards[-1]['next']} images could be read: {messages}")
    quantiles = {site: norm_quantiles(np.sum([s["norm_histogram"][site] for s in shards], 0)) for site in config.sites}
    skipped = sum(len(s["skipped"]) for s in shards)
    write_json(
        root / "manifest.json",
        {
            "schema": config.schema,
            "n_images": n_images,
            "n_tokens": config.random_k or len(config.token_roles),
            "n_skipped": skipped,
            "shards": [len(s["ids"]) for s in shards],
            "shard_sha256": [sha256(shard_folder(root, i) / "shard.json") for i in range(len(shards))],
            "d": next(s["d"] for s in shards if s["ids"]),
            "norm_quantiles": quantiles,
        },
    )
    if skipped:
        log.warning("%d of %d images could not be read and were skipped; see shard.json in %s.",
                    skipped, len(shards) and shards[-1]["next"], root)  # fmt: skip
    for site in config.sites:
        _warn_of_high_norms(site, np.sum([s["norm_histogram"][site] for s in shards], 0), quantiles[site])
    return ActivationStore(root)


def _warn_of_high_norms(site: str, histogram: np.ndarray, quantiles: list[float]) -> None:
    """Large ViTs keep global information in a few tokens of huge norm, which distort means and dictionaries."""
    median = quantiles[2]
    share = histogram[NORM_EDGES[:-1] > HIGH_NORM_FACTOR * median].sum() / max(1, histogram.sum())
    if share > HIGH_NORM_SHARE:
        log.warning(
            "%s: %.2f %% of the tokens have norms above %.0f times the median (%.3g); such high-norm tokens dominate "
            "squared errors. Consider a model with registers, or another block.",
            site, 100 * share, HIGH_NORM_FACTOR, median,
        )  # fmt: skip
