"""From a model and images to a store on disk, resumable after a kill at any moment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
    write_json,
)
from vlsae.activations.ranks import shards_of
from vlsae.activations.reader import ActivationStore
from vlsae.activations.texts import TextSource, load_texts
from vlsae.activations.writer import clear_leftovers, write_shard
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.backbones.site import Site
from vlsae.images.sources import ImageSource, load_images

log = logging.getLogger("vlsae")
HIGH_NORM_FACTOR = 4.0
HIGH_NORM_SHARE = 1e-3
CACHED_TOKENS = 1600  # a forward pass on the processor; more, and a block's activations leave its cache


def extract(
    model: Backbone | str,
    images,
    site: str | Site | Sequence[str | Site] = "vision.-2.resid_post",
    out: str | Path = "runs/activations",
    *,
    tokens: str = "patches",
    random_k: int = 0,
    dtype: str = "float16",
    batch_size: int | None = None,
    shard_images: int = 512,
    seed: int = 0,
    strict: bool = False,
    progress: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> ActivationStore:
    """Write the activations of images to disk; call again with the same arguments to continue after any interruption.

    Several jobs that share a disk can fill one store, each with its own `rank` and otherwise the same arguments, in any
    order and without a word between them. Which shards a rank writes follows from their number; the job that finds all
    shards there completes the store, with the bytes that one job alone would have written.

    Args:
        model: a `Backbone` or its name; `load_model(name, device, precision="bfloat16")` is the quick one.
        images: anything `vlsae.load_images` opens; for "text.pooled" texts instead, a list of strings or a `.txt` with one a
            line, which the store then counts and numbers like images.
        site: one site or several of one tower, all read in one forward pass that ends at the last of them. With
            "vision.pooled" beside sites of tokens, the store also holds every image's embedding (`store.embeddings()`).
        out: folder of the store.
        tokens: "patches", "cls", "patches+cls", "all" (with registers) or "random_k" (`random_k` tokens an image).
        random_k: tokens kept of every image under `tokens="random_k"`.
        dtype: "float16", "bfloat16" or "float32".
        batch_size: images a forward pass; where None 32, on the processor as many as its cache has room for.
        shard_images: images a shard, rounded up to a multiple of `batch_size`; at most this much work is lost.
        seed: of "random_k".
        strict: fail at the first unreadable image instead of skipping it with a warning.
        progress: show a progress bar.
        rank, world_size: number of this job, from 0, and how many jobs share the work. A rank runs once at a time.

    Returns:
        The `ActivationStore`; its `complete` is False as long as other ranks have not finished (see `missing_ranks`).

    Raises:
        StoreError: when `out` holds a store made with other arguments, no image could be read, or there is no such rank.
        UnreadableImage: for an unreadable image, if `strict`.
        OSError: when the disk is full; what was written stays valid and a second call continues.

    Example:
        >>> import tempfile, vlsae
        >>> store = vlsae.extract("tiny", vlsae.world.scenes(4), out=tempfile.mkdtemp() + "/store", progress=False)
        >>> store.n_images, store.n_tokens, store.d
        (4, 64, 192)
    """
    sites = [Site.parse(s) for s in ([site] if isinstance(site, (str, Site)) else site)]
    model, source, root = load_model(model), _load(images, sites), Path(out)
    sites = [s.resolve(len(model.blocks(s.tower))) for s in sites]
    config = _plan(model, source, sites, tokens, random_k, dtype, batch_size, shard_images, seed)
    mine = shards_of(rank, world_size, config.n_shards)
    done = _open(root, config)
    _same_images(root, done, source)
    clear_leftovers(root, mine)
    sizes = {number: len(range(*config.span(number))) for number in mine}
    before = sum(size for number, size in sizes.items() if number in done)
    with tqdm(total=sum(sizes.values()), initial=before, desc="extract", unit="image", disable=not progress) as bar:
        for number in mine:
            if number not in done:
                write_shard(root, number, model, source, config, strict, bar)
    return _finish(root, config)


def _load(inputs, sites: list[Site]) -> ImageSource | TextSource:
    """The site says what a list of names or a file of lines holds."""
    if [str(s) for s in sites] == ["text.pooled"]:
        return load_texts(inputs)
    towers = {s.tower for s in sites}
    if towers != {"vision"}:
        raise StoreError(
            f"A store holds images at sites of the vision tower, or texts at text.pooled alone; sites of "
            f"{', '.join(sorted(towers))} were given: {', '.join(map(str, sites))}."
        )
    return load_images(inputs)


def _plan(model, source, sites, tokens, random_k, dtype, batch_size, shard_images, seed) -> StoreConfig:
    only_pooled = all(s.stream == "pooled" for s in sites)
    roles = ["cls"] if only_pooled else list(model.token_roles)
    if only_pooled:
        tokens = "cls"
    if tokens not in TOKEN_POLICIES:
        raise StoreError(f"tokens={tokens!r} is unknown; use one of {', '.join(TOKEN_POLICIES)}.")
    kept = select_roles(tokens, roles)
    if tokens == "random_k" and not 1 <= random_k <= len(kept):
        raise StoreError(f"random_k={random_k} must lie between 1 and the {len(kept)} tokens of this model.")
    if batch_size is None:
        batch_size = _default_batch(model)
    if batch_size < 1 or shard_images < 1:
        raise StoreError(f"batch_size={batch_size} and shard_images={shard_images} must be at least 1.")
    return StoreConfig(
        model=model.spec,
        weight_hash=model.weight_hash,
        precision=model.precision,
        source=source.spec,
        n_source=len(source),
        class_names=list(source.class_names),
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


def _default_batch(model: Backbone) -> int:
    """A power of two, so that full batches make up a shard."""
    if model.device.type != "cpu":
        return 32
    return min(32, 1 << max(0, (CACHED_TOKENS // len(model.token_roles)).bit_length() - 1))


def _open(root: Path, config: StoreConfig) -> dict[int, dict]:
    """The shards that are there already, of a store begun with the same arguments or begun now."""
    if not (root / "config.json").exists():
        (root / "shards").mkdir(parents=True, exist_ok=True)
        write_json(root / "config.json", config_dict(config))
    _same_arguments(root, config)
    manifest = root / "manifest.json"
    finished = manifest.exists()  # asked before the shards are listed: another rank may finish in between
    done = complete_shards(root)
    if finished and len(done) < config.n_shards:
        manifest.unlink(missing_ok=True)  # somebody deleted damaged shards
    return done


def _same_arguments(root: Path, config: StoreConfig) -> None:
    before, now = config_dict(read_config(root)), config_dict(config)
    changed = [f"{k}: {before[k]!r} there, {now[k]!r} now" for k in now if before[k] != now[k]]
    if changed:
        raise StoreError(f"{root} was begun with other arguments ({'; '.join(changed)}); use another folder.")


def _same_images(root: Path, shards: dict[int, dict], source: ImageSource | TextSource) -> None:
    """A store is continued, or found finished, only with the images it was begun with; the first stored one tells."""
    first = next((s for s in shards.values() if s["ids"]), None)
    if first is not None and source[first["indices"][0]].id != first["ids"][0]:
        raise StoreError(
            f"{root} was begun with other images (number {first['indices'][0]} differs); use another folder."
        )


def _finish(root: Path, config: StoreConfig) -> ActivationStore:
    """Write the manifest if all shards are there; every rank that finds them so writes the same one."""
    _same_arguments(root, config)  # two jobs with different arguments may have begun in the same moment
    shards = list(complete_shards(root).values())
    if len(shards) < config.n_shards:
        return ActivationStore(root)
    if not any(s["ids"] for s in shards):
        messages = "; ".join(message for s in shards for _, message in s["skipped"][:3])
        raise StoreError(f"None of the {sum(s['next'] - s['first'] for s in shards)} images could be read: {messages}")
    histograms = {site: np.sum([s["norm_histogram"][site] for s in shards], 0) for site in config.sites}
    quantiles = {site: norm_quantiles(histogram) for site, histogram in histograms.items()}
    skipped = sum(len(s["skipped"]) for s in shards)
    manifest = {
        "schema": config.schema,
        "n_images": sum(len(s["ids"]) for s in shards),
        "n_tokens": config.random_k or len(config.token_roles),
        "n_skipped": skipped,
        "shards": [len(s["ids"]) for s in shards],
        "shard_sha256": [sha256(shard_folder(root, i) / "shard.json") for i in range(len(shards))],
        "d": next(s["d"] for s in shards if s["ids"]),
        "norm_quantiles": quantiles,
    }
    _complete(root, manifest)
    if skipped:
        log.warning("%d of %d images could not be read and were skipped; see shard.json in %s.",
                    skipped, config.n_source, root)  # fmt: skip
    for site in config.sites:
        _warn_of_high_norms(site, histograms[site], quantiles[site])
    return ActivationStore(root)


def _complete(root: Path, manifest: dict) -> None:
    """Put the manifest in place and drop what interrupted jobs left."""
    path = root / "manifest.json"
    try:
        if not path.exists():
            write_json(path, manifest)
    except FileNotFoundError:  # another rank completed the store in this moment and tidied up
        if not path.exists():
            raise
    for leftover in root.glob(".partial*"):
        leftover.unlink(missing_ok=True)
    clear_leftovers(root, range(len(manifest["shards"])))


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
