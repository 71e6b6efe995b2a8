"""What FORMAT.md says, as code: names, fields and the few operations that writer and reader share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vlsae.atomic import replacing

SCHEMA = 2
READABLE = (1, 2)
DTYPES = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}
TOKEN_POLICIES = ("patches", "cls", "patches+cls", "all", "random_k")
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
NORM_EDGES = np.exp(np.arange(-180, 381) * np.log(1.05))  # 1.05^-180 = 1.5e-4 to 1.05^380 = 1.1e8


class StoreError(ValueError):
    """A store that is missing, incomplete, damaged, or does not fit what is asked of it."""


@dataclass(frozen=True)
class StoreConfig:
    """The fields of `config.json`; FORMAT.md says what they mean."""

    model: str
    weight_hash: str
    precision: str
    source: str
    n_source: int
    sites: list[str]
    dtype: str
    tokens: str
    random_k: int
    seed: int
    shard_images: int
    batch_size: int
    token_roles: list[str]
    geometry: dict
    class_names: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise StoreError(f"dtype={self.dtype!r} cannot be stored; use one of {', '.join(DTYPES)}.")

    @property
    def n_shards(self) -> int:
        """Shards of the complete store (schema 2; in schema 1 it depended on which images could be read)."""
        return -(-self.n_source // self.shard_images)

    def span(self, number: int) -> tuple[int, int]:
        """Source indices of a shard: from the first up to and without the second."""
        return number * self.shard_images, min(self.n_source, (number + 1) * self.shard_images)


def select_roles(policy: str, roles: list[str]) -> list[int]:
    """Positions that a token policy keeps, of a sequence with these roles. Prompt tokens are never kept."""
    wanted = {
        "patches": {"patch"},
        "cls": {"cls"},
        "patches+cls": {"patch", "cls"},
        "all": {"patch", "cls", "register", "text"},
        "random_k": {"patch", "cls", "text"},
    }[policy]
    kept = [i for i, role in enumerate(roles) if role in wanted]
    if not kept:
        raise StoreError(
            f"tokens={policy!r} keeps nothing: this model has only {', '.join(sorted(set(roles)))} tokens."
        )
    return kept


def shard_folder(root: Path, number: int) -> Path:
    return root / "shards" / f"{number:05d}"


def is_pooled(site: str) -> bool:
    """Whether a site has one token an image."""
    return site.endswith(".pooled")


def site_file(site: str) -> str:
    return f"{site}.bin"


def write_json(path: Path, value: dict) -> None:
    """Write so that the file is either the old or the new one, whatever happens."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)


def read_config(root: Path) -> StoreConfig:
    """The config of a store; raises StoreError where there is none, or of a foreign schema."""
    path = root / "config.json"
    if not path.exists():
        raise StoreError(f"{root} is no activation store: {path.name} is missing; write one with vlsae.extract.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} is damaged ({error}); extract the store again.") from error
    if values.get("schema") not in READABLE:
        supported = " and ".join(map(str, READABLE))
        raise StoreError(f"{path} has schema {values.get('schema')}, this version reads {supported}; extract again.")
    if values["schema"] == 1:
        values["precision"] = "float32"  # there was no other
    known = set(StoreConfig.__dataclass_fields__)
    if set(values) != known:
        raise StoreError(f"{path} misses {sorted(known - set(values))} or has unknown {sorted(set(values) - known)}.")
    return StoreConfig(**values)


def config_dict(config: StoreConfig) -> dict:
    return asdict(config)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def complete_shards(root: Path) -> dict[int, dict]:
    """`shard.json` of every complete shard, by its number, in order."""
    shards = {}
    for path in sorted((root / "shards").glob("[0-9]*/shard.json"), key=lambda path: int(path.parent.name)):
        try:
            shards[int(path.parent.name)] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise StoreError(f"{path} is damaged ({error}); delete this shard and extract again.") from error
    return shards


def norm_quantiles(histogram: np.ndarray) -> list[float]:
    """Norms at QUANTILES from counts over NORM_EDGES: the upper edge of the bin, at most 5 % too high."""
    cumulative = np.cumsum(histogram)
    if cumulative[-1] == 0:
        return [float("nan")] * len(QUANTILES)
    bins = np.searchsorted(cumulative, np.asarray(QUANTILES) * cumulative[-1])
    return [float(NORM_EDGES[min(b + 1, len(NORM_EDGES) - 1)]) for b in bins]
