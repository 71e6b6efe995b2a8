"""What benchmarks share: fixed thread counts, interleaved timing, peak memory, facts about the machine, text tables."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
SAMPLE = 0.05  # seconds that one measurement takes at least, by repeating quick calls


def with_threads(threads: int) -> None:
    """Start this script anew unless every library is held to that many threads; they read it when they are loaded."""
    wanted = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    import torch

    torch.set_num_threads(threads)


@dataclass
class Timing:
    """Seconds per call of one row in every round; None in the rounds that it sat out. `result` is the last call's."""

    wall: list[float | None] = field(default_factory=list)
    cpu: list[float | None] = field(default_factory=list)
    result: object = None

    def median(self, kind: str = "wall") -> float:
        return statistics.median(t for t in getattr(self, kind) if t is not None)

    @property
    def rounds(self) -> int:
        return sum(t is not None for t in self.wall)

    def ratio(self, other: Timing, kind: str = "wall") -> float:
        """Median over the common rounds of this row's time divided by the other's."""
        both = zip(getattr(self, kind), getattr(other, kind), strict=True)
        return statistics.median(a / b for a, b in both if a is not None and b is not None)


def interleaved(calls: dict[str, Callable], rounds: int, once: Collection[str] = ()) -> dict[str, Timing]:
    """Time rows in turns, so that whatever disturbs the machine disturbs all of them.

    Every call is made twice to warm up. A round then measures each row, forwards and backwards in turn. Within a round a
    quick call is repeated until `SAMPLE` seconds have passed. Rows named in `once` are measured in the first round only,
    and not warmed up.
    """
    timings, repeats = {name: Timing() for name in calls}, dict.fromkeys(calls, 1)
    for name, call in calls.items():
        if name not in once:
            call()
            start = time.perf_counter()
            call()
            repeats[name] = min(100, max(1, round(SAMPLE / max(time.perf_counter() - start, 1e-6))))
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else reversed(calls):
            timing = timings[name]
            if number > 0 and name in once:
                timing.wall.append(None)
                timing.cpu.append(None)
                continue
            timing.result = None
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                timing.result = calls[name]()
            timing.cpu.append((time.process_time() - cpu) / repeats[name])
            timing.wall.append((time.perf_counter() - wall) / repeats[name])
    return timings


def _memory(name: str) -> float:
    """A field of /proc/self/status in MB (2^20 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no field {name}; peak memory is measured on Linux only.")


def extra_peak(call: Callable) -> float:
    """MB by which the resident memory of this process rises above its present size while `call` runs.

    The kernel's high-water mark is set back first, so no peak is missed. Use a fresh process: memory that an earlier
    call left with the allocator would be used again unseen.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    call()
    return max(0.0, _memory("VmHWM") - before)


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine_facts(threads: int, packages: Sequence[str], date: str) -> dict:
    """What somebody needs to know to compare the figures with their own."""
    from threadpoolctl import threadpool_info

    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in lines}
    flags = cpu.get("flags", "").split()
    pools = (pool for pool in threadpool_info() if pool["user_api"] == "blas")
    return {
        "date": date,
        "cpu": f"{cpu.get('model name', platform.processor())}, {os.cpu_count()} processors",
        "flags": [flag for flag in flags if flag.startswith(("avx", "fma", "amx"))],
        "load_average": os.getloadavg()[0],
        "threads": threads,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "blas": sorted(
            f"{Path(pool['filepath']).name.split('-')[0]} {pool['version']} ({pool.get('architecture', '?')}, "
            f"{pool['num_threads']} threads)"
            for pool in pools
        ),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
    }


def facts_text(facts: dict) -> str:
    """`machine_facts` in a few lines."""
    packages = ", ".join(f"{name} {found or 'not installed'}" for name, found in facts["packages"].items())
    return "\n".join(
        [
            f"{facts['date']}: {facts['cpu']}, {facts['threads']} thread(s), load {facts['load_average']:.1f} at the start",
            f"  flags: {' '.join(facts['flags']) or 'unknown'}; OPENBLAS_CORETYPE={facts['OPENBLAS_CORETYPE']}",
            f"  Python {facts['python']}, {packages}",
            f"  BLAS beside torch's own: {'; '.join(facts['blas'])}",
        ]
    )


def judged(
    wanted: Sequence[tuple[str, str, float, float | None, float | None]], threads: int
) -> tuple[str, list[dict]]:
    """What was asked for beside what was measured, as a table and as records.

    Args:
        wanted: what; "<=" or ">="; the bound; the measured figure by the wall clock, by processor time.
        threads: with one, processor time decides, since others' work hardly changes it; with more, the wall clock.
    """
    lines, records = [], []
    for what, sign, bound, wall, cpu in wanted:
        measured = cpu if threads == 1 and cpu is not None else wall
        if measured is None:
            continue
        met = measured <= bound if sign == "<=" else measured >= bound
        records.append({"what": what, "wanted": f"{sign} {bound:g}", "wall": wall, "cpu": cpu, "met": met})
        lines.append([what, f"{sign} {bound:g}", number(wall), number(cpu), "pass" if met else "MISS"])
    return table(["", "wanted", "wall", "CPU", ""], lines), records


def write_report(args: argparse.Namespace, facts: dict, rows: dict, targets: list[dict]) -> None:
    """What a table tells, for machines, to `args.json`."""
    report = {"facts": facts, "arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows, "targets": targets}
    args.json.write_text(json.dumps(report, indent=1) + "\n")


def number(value: float | None, digits: int = 3) -> str:
    """A figure with as many digits as it deserves; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        places = max(0, digits - 1 - (0 if value == 0 else int(f"{value:e}".partition("e")[2])))
        return f"{value:,.{places}f}"
    return f"{value:.1e}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in (head, ["-" * w for w in widths], *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
