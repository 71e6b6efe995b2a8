"""Writing and reading activations, ours and others' ways: `python benchmarks/store.py --threads 1`; see README.md."""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import (
    extra_peak,
    facts_text,
    interleaved,
    judged,
    machine_facts,
    number,
    table,
    with_threads,
    write_report,
)

PACKAGES = ("numpy", "torch")
PER_IMAGE, SITE = 196, "vision.0.resid_post"
PEER, OURS = "shuffled: per-item Dataset, DataLoader", "shuffled: ours"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--batch", type=int, default=4096, help="tokens a shuffled batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small store, 2 rounds: does it still run?")
    parser.add_argument("--folder", type=Path, help="where the stores are written; a temporary folder where not given")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a row: print its peak memory
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens, args.rounds = 20_000, 2
    return args


def synthetic(args: argparse.Namespace):
    """A backbone whose tokens cost nothing, and as many samples: what remains of `extract` is its writer."""
    import torch
    from PIL import Image
    from torch import nn

    from vlsae.backbones import Backbone
    from vlsae.images.geometry import Geometry
    from vlsae.images.sources import ImageSource, Sample

    class Ready(Backbone):
        spec, weight_hash, has_text = "synthetic", "0" * 16, False
        geometry, token_roles = Geometry(224, 224, 14, 14, "crop", 224), ["patch"] * PER_IMAGE

        def __init__(self):
            self.model = nn.Linear(1, 1)
            self.values = torch.randn(64, PER_IMAGE, args.d, generator=torch.Generator().manual_seed(0))

        def blocks(self, tower):
            return [None]

        def tokens_at(self, images, sites):
            return {str(site): self.values[: len(images)] for site in sites}

    dot = Image.new("RGB", (1, 1))
    samples = [Sample(dot, f"{i:016x}", str(i)) for i in range(args.tokens // PER_IMAGE)]
    return Ready(), ImageSource(samples, spec="synthetic")


def write_ours(args: argparse.Namespace, folder: Path) -> None:
    import vlsae

    shutil.rmtree(folder, ignore_errors=True)
    model, samples = synthetic(args)
    vlsae.extract(model, samples, SITE, folder, dtype=args.dtype, batch_size=32, progress=False)


def write_memmap(args: argparse.Namespace, values: np.ndarray, path: Path) -> None:
    out = np.memmap(path, values.dtype, "w+", shape=(args.tokens // PER_IMAGE * PER_IMAGE, args.d))
    for start in range(0, len(out), len(values)):
        out[start : start + len(values)] = values[: len(out) - start]
    out.flush()


def dropped(folder: Path) -> None:
    """Ask the kernel to forget the files' pages, which it does for pages that are on disk and not mapped."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows_of(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """Every row of the table as a call that writes or reads all tokens once and gives float32 where it reads."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from vlsae.activations import ActivationStore, ReaderState, reader

    raw = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}[args.dtype]
    kind, n = getattr(torch, args.dtype), args.tokens // PER_IMAGE * PER_IMAGE
    ours, flat = folder / "store", folder / "flat.bin"
    values = synthetic(args)[0].values.flatten(0, 1).to(kind).view(torch.int16 if kind.itemsize == 2 else kind)
    values = values.numpy().view(raw)
    if not args.peak:
        write_ours(args, ours)
        write_memmap(args, values, flat)

    def mapped() -> np.ndarray:
        return np.memmap(flat, raw, "r", shape=(n, args.d))

    def floats(x: np.ndarray):
        return torch.from_numpy(x).view(kind).float()

    class PerItem(Dataset):
        def __init__(self):
            self.data = mapped()

        def __len__(self):
            return n

        def __getitem__(self, i):
            return torch.from_numpy(np.array(self.data[i])).view(kind)

    def read(batches, tokens=len) -> None:
        assert sum(tokens(x) for x in batches) == n

    def shuffled(buffer: int = reader.BUFFER_IMAGES) -> None:
        before, reader.BUFFER_IMAGES = reader.BUFFER_IMAGES, buffer
        read(x for x, _ in ActivationStore(ours).shuffled(args.batch, ReaderState(seed=1)))
        reader.BUFFER_IMAGES = before

    def gathered() -> None:
        data, order = mapped(), np.random.default_rng(1).permutation(n)
        read(floats(data[order[i : i + args.batch]]) for i in range(0, n, args.batch))

    def in_order() -> None:
        data, step = mapped(), 64 * PER_IMAGE
        read(floats(np.array(data[i : i + step])) for i in range(0, n, step))

    return {
        "write: ours, with checksums and statistics": lambda: write_ours(args, folder / "again"),
        "write: memmap": lambda: write_memmap(args, values, folder / "again.bin"),
        "in order: ours": lambda: read(
            (x for _, x in ActivationStore(ours).batches(64)), lambda x: x.shape[0] * x.shape[1]
        ),
        "in order: memmap": in_order,
        OURS: shuffled,
        "shuffled: ours, the whole set in one buffer": lambda: shuffled(n),
        "shuffled: numpy gather from one memmap": gathered,
        PEER: lambda: read(x.float() for x in DataLoader(PerItem(), args.batch, shuffle=True)),
    }


def cold(rows: dict[str, Callable], folder: Path) -> dict[str, Callable]:
    """The shuffled readers once more, from files whose pages were dropped; the dropping is not timed."""
    import time

    def timed(call: Callable) -> Callable[[], float]:
        def run() -> float:
            dropped(folder)
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        return run

    return {name: timed(call) for name, call in rows.items() if name.startswith("shuffled")}


def peak(name: str, argv: list[str], folder: Path) -> float:
    """Peak memory of one pass in a fresh process, MB; pages of mapped files count as long as they are mapped."""
    command = [sys.executable, __file__, *argv, "--folder", str(folder), "--peak", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(args: argparse.Namespace, argv: list[str], folder: Path) -> None:
    rows = rows_of(args, folder)
    if args.peak:
        print(extra_peak(rows[args.peak]))
        return
    facts = machine_facts(args.threads, PACKAGES, args.date)
    n = args.tokens // PER_IMAGE * PER_IMAGE
    size = n * args.d * (4 if args.dtype == "float32" else 2) / 1e6
    print(facts_text(facts))
    print(f"{n:,} x {args.d} {args.dtype} ({size:.0f} MB), {args.rounds} rounds, batches of {args.batch:,}\n")
    writing = {name: call for name, call in rows.items() if name.startswith("write")}
    timings = interleaved(writing, args.rounds)
    os.sync()  # or the kernel would go on writing while the readers are timed
    timings |= interleaved({name: call for name, call in rows.items() if name not in writing}, args.rounds)
    from_disk = {name: [call() for _ in range(args.rounds)] for name, call in cold(rows, folder).items()}
    lines, results = [], {}
    for name, timing in timings.items():
        is_peer_of = name.startswith("shuffled")
        disk = sorted(from_disk[name])[args.rounds // 2] if name in from_disk else None
        results[name] = {
            "wall_s": timing.wall, "cpu_s": timing.cpu, "cold_s": from_disk.get(name),
            "faster_than_dataset": timings[PEER].ratio(timing) if is_peer_of else None,
            "faster_than_dataset_cpu": timings[PEER].ratio(timing, "cpu") if is_peer_of else None,
            "peak_mb": peak(name, argv, folder),
        }  # fmt: skip
        r, wall = results[name], timing.median()
        lines.append([name, number(1e3 * wall), number(1e3 * timing.median("cpu")), number(size / wall),
                      number(n / wall / 1e3), number(disk and n / disk / 1e3), number(r["faster_than_dataset"]),
                      number(r["faster_than_dataset_cpu"]), number(r["peak_mb"])])  # fmt: skip
    head = ["", "wall ms", "CPU ms", "MB/s", "k tokens/s", "cold k tokens/s", "x Dataset", "(CPU)", "peak MB"]
    print(table(head, lines))
    ours = results[OURS]
    wanted = [(f"{PEER} / {OURS}", ">=", 5.0, ours["faster_than_dataset"], ours["faster_than_dataset_cpu"])]
    text, records = judged(wanted, args.threads)
    print(f"\n{text}")
    if args.json:
        write_report(args, facts, results, records)


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
        measure(args, argv, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(args, argv, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
