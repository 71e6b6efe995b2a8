"""How fast and with how much memory dictionaries are opened: `python benchmarks/opening.py --threads 1`; see README.md."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import (
    Timing,
    extra_peak,
    facts_text,
    interleaved,
    judged,
    machine_facts,
    number,
    table,
    version,
    with_threads,
    write_report,
)

PACKAGES = ("numpy", "torch", "safetensors", "sae-lens", "dictionary-learning", "eai-sparsify", "overcomplete")
OURS, THEIRS, BYTES, READ = "vlsae.load_dictionary", "its own loader", "bytes alone", "bytes alone, read into memory"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, help="(16,384; with --large 49,152)")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small files, 3 rounds: does it still run?")
    parser.add_argument("--rounds", type=int, help="(9; with --large 5)")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="files whose name contains one of these")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # a file, a row and a path: print its peak memory
    args = parser.parse_args(argv)
    args.latents = args.latents or (256 if args.quick else 49_152 if args.large else 16_384)
    args.d = 64 if args.quick else args.d
    args.rounds = args.rounds or (3 if args.quick else 5 if args.large else 9)
    return args


def importable(needs: str | None) -> bool:
    """Whether a peer is there; from then on a failure is an error and no missing peer."""
    if needs is None or version(needs) is not None:
        return True
    print(f"left out, {needs} is not installed")
    return False


def bytes_alone(path: Path) -> dict:
    """The tensors of a file as they lie there, by the quickest reader of their format."""
    import torch
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, mmap=False)


def bytes_read(path: Path) -> dict:
    """The file as one array in memory of this process; what numbers its header makes does not matter."""
    import numpy as np
    import torch

    return {"all": torch.from_numpy(np.fromfile(path, np.float32))}


def plain_copy(path: Path) -> Path:
    """The file, or for a pickled model one with its state dict, of which `bytes_alone` is the floor too."""
    import torch

    if path.suffix == ".safetensors":
        return path
    found = torch.load(path, weights_only=False)
    if isinstance(found, dict):
        return path
    torch.save(found.state_dict(), path.with_suffix(".state"))
    return path.with_suffix(".state")


def rows_of(name: str, path: Path) -> dict[str, Callable[[], float]]:
    """Every way to open a file as a call that also touches each weight."""
    from opening_files import FILES, touched

    import vlsae

    file = FILES[name]
    plain = plain_copy(path / file.weights if path.is_dir() else path)
    return {
        OURS: lambda: touched(vlsae.load_dictionary(path, **file.answers)),
        THEIRS: lambda: touched(file.theirs(path)),
        BYTES: lambda: touched(bytes_alone(plain)),
        READ: lambda: touched(bytes_read(plain)),
    }


def written(name: str, folder: Path, d: int, n: int) -> Path:
    from opening_files import FILES

    (folder / name).mkdir(parents=True)
    return FILES[name].write(folder / name, d, n)


def peak(name: str, row: str, path: Path) -> float:
    """MB that one opening takes in this process, after one of a tiny file has loaded the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        rows_of(name, written(name, Path(folder), 16, 64))[row]()
        call = rows_of(name, path)[row]
        return extra_peak(call)


def peaks(name: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of every row, each in a fresh process, as a multiple of the file."""
    size, found = weights_of(name, path).stat().st_size / 2**20, {}
    for row in (OURS, THEIRS, BYTES, READ):
        command = [sys.executable, __file__, "--threads", str(args.threads), "--peak", name, row, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[row] = float(done.stdout.split()[-1]) / size
    return found


def weights_of(name: str, path: Path) -> Path:
    from opening_files import FILES

    return path / FILES[name].weights if path.is_dir() else path


def line(row: str, timings: dict[str, Timing], multiples: dict[str, float]) -> list[str]:
    timing, ours, floor = timings[row], timings[OURS], timings[BYTES]
    ratios = [timing.ratio(other, clock) for other in (ours, floor) for clock in ("wall", "cpu")]
    return [row, number(1e3 * timing.median()), *map(number, ratios), number(multiples[row])]


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    if args.peak:
        name, row, path = args.peak
        print(peak(name, row, Path(path)))
        return
    from opening_files import FILES

    facts = machine_facts(args.threads, PACKAGES, args.date)
    print(facts_text(facts))
    print(f"d={args.d}, n={args.latents:,}, float32, {args.rounds} rounds, files in the page cache\n")
    results, wanted = {}, []
    for name, file in FILES.items():
        if (args.only and not any(text in name for text in args.only)) or not importable(file.needs):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = written(name, Path(folder), args.d, args.latents)
            size = weights_of(name, path).stat().st_size / 2**20
            timings, multiples = interleaved(rows_of(name, path), args.rounds), peaks(name, path, args)
        lines = [line(row, timings, multiples) for row in timings]
        print(table([f"{name}, {size:.0f} MB", "wall ms", "x ours", "(CPU)", "x bytes", "(CPU)", "peak / file"], lines))
        print(flush=True)
        results[name] = {
            row: {"wall_s": t.wall, "cpu_s": t.cpu, "peak_of_file": multiples[row]} for row, t in timings.items()
        }
        theirs, ours = timings[THEIRS], timings[OURS]
        wanted.append((f"{name}: peak of ours / file", "<=", 2.0, multiples[OURS], None))
        if file.needs:
            wanted.append((f"{name}: {THEIRS} / ours", ">=", 1.0, theirs.ratio(ours), theirs.ratio(ours, "cpu")))
    text, records = judged([] if args.quick else wanted, args.threads)
    print("small files, no target is judged" if args.quick else text)
    if args.json:
        write_report(args, facts, results, records)


if __name__ == "__main__":
    main(sys.argv[1:])
