"""Solvers of SpLiCE's positive lasso side by side: `python benchmarks/splice.py --threads 1`; see README.md here."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import (
    Timing,
    extra_peak,
    facts_text,
    interleaved,
    machine_facts,
    number,
    table,
    version,
    with_threads,
)  # fmt: skip

L1 = 0.25  # SpLiCE's l1_penalty, lambda = 0.125
SINGLE = 8  # images that a call solves one by one where the batch is one image, because images differ
BEST, SPLICE = "ours, prepare(C)", "SpLiCE's way: sklearn loop"
PACKAGES = ("numpy", "scipy", "torch", "numba", "spams-bin", "scikit-learn", "celer")
HEAD = (
    "", "images", "rounds", "wall ms", "CPU ms", "images/s", "x GEMM", "(CPU)", "x ours", "(CPU)",
    "max gap", "extra MB",
)  # fmt: skip


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of every library (1); with 2, also 2 against 1")
    parser.add_argument("--concepts", type=int, help="K (10,000; with --large 100,000)")
    parser.add_argument("--dimension", type=int, help="d (512)")
    parser.add_argument("--images", type=int, nargs="+", help="batch sizes (1 64 1024; with --large 64)")
    parser.add_argument("--rounds", type=int, help="(5 from 1,024 images on, 9 for less)")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="rows whose name contains one of these")
    parser.add_argument("--seed", type=int, default=2611)
    parser.add_argument("--large", action="store_true", help="K = 100,000: solvers without a Gram matrix")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute; judges no target")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory in processes of their own")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # a method and a problem: print its peak memory
    args = parser.parse_args(argv)
    small, large = args.quick, args.large
    args.concepts = args.concepts or (1_000 if small else 100_000 if large else 10_000)
    args.dimension = args.dimension or (64 if small else 512)
    args.images = sorted(set(args.images or ((1, 16) if small else (64,) if large else (1, 64, 1024))))
    args.rounds = args.rounds or (3 if small else None)
    return args


def chosen(args: argparse.Namespace) -> dict:
    """The methods of this run; says which peers are missing."""
    from splice_methods import METHODS

    found = {}
    for name, method in METHODS.items():
        if args.only and name != BEST and not any(text in name for text in args.only):
            continue
        if method.gram and args.concepts > 25_000:
            print(f"left out, it needs a Gram matrix of {4 * args.concepts**2 / 2**30:.0f} GiB: {name}")
        elif method.once and args.concepts > 25_000:
            print(f"left out, it would take hours: {name}")
        elif method.needs and version(method.needs) is None:
            print(f"left out, {method.needs} is not installed: {name}")
        else:
            found[name] = method
    return found


def peak(name: str, path: str, threads: int) -> float:
    """In a process of its own: MB that preparing and solving take beyond the inputs and the loaded libraries."""
    import numpy as np
    from splice_methods import METHODS, Problem

    method = METHODS[name]
    with np.load(path) as file:
        Z, C = file["Z"], file["C"]
    some = np.random.default_rng(0).standard_normal((256, C.shape[1])).astype(np.float32)
    method.make(Problem(some[:4], some, L1, threads))(slice(None))  # loads the libraries and the compiled code
    part = slice(method.at_most)
    return extra_peak(lambda: method.make(Problem(Z[part], C, L1, threads))(slice(None)))


def peaks(methods: list[str], Z, C, threads: int) -> dict[str, float]:
    """Peak memory of every method, each in a fresh process."""
    import numpy as np

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "problem.npz"))
        np.savez(path, Z=Z, C=C)
        for name in methods:
            command = [sys.executable, __file__, "--threads", str(threads), "--peak", name, path]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                found[name] = float(done.stdout.split()[-1])
            else:
                print(f"peak memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return found


def measure(
    methods: dict, Z, C, alone: bool, args: argparse.Namespace
) -> tuple[dict[str, Timing], dict[str, int], dict]:
    """Timings, images a call, and exact duality gaps of every row at one batch size; `alone`: solved one by one."""
    import scipy.sparse
    from splice_methods import Problem, as_csr, products

    from vlsae.splice import duality_gap

    def whole(call):
        return lambda: [call(slice(None))]

    def singly(call):
        return lambda: [call(slice(i, i + 1)) for i in range(SINGLE)]

    form = singly if alone else whole
    calls = {name: form(call) for name, call in products(Problem(Z, C, L1, args.threads)).items()}
    images = dict.fromkeys(calls, len(Z))
    gaps: dict[str, float | None] = dict.fromkeys(calls)
    for name, method in methods.items():
        if method.sizes[0] <= (1 if alone else len(Z)) <= method.sizes[1]:
            part = Z if alone else Z[: method.at_most]
            calls[name] = form(method.make(Problem(part, C, L1, args.threads)))
            images[name] = len(part)
    if args.threads > 1:
        calls["ours, one thread"] = form(methods[BEST].make(Problem(Z, C, L1, 1)))
        images["ours, one thread"] = len(Z)
    rounds = args.rounds or (5 if len(Z) >= 1024 else 9)
    timings = interleaved(calls, rounds, {name for name in calls if name in methods and methods[name].once})
    for name in calls:
        if name not in gaps:
            weights = scipy.sparse.vstack([as_csr(result) for result in timings[name].result], "csr")
            gaps[name] = float(duality_gap(Z[: images[name]], C, weights, L1).max())
        timings[name].result = None
    return timings, images, gaps


def decisive(args: argparse.Namespace) -> str:
    """The clock that judges: with one thread processor time, which others on the machine disturb least."""
    return "cpu" if args.threads == 1 else "wall"


def rows(
    timings: dict[str, Timing], images: dict[str, int], gaps: dict, memory: dict, alone: bool, clock: str
) -> list[dict]:
    """What the table shows, with ratios of the time an image takes in the same round; `clock` picks the fastest product."""
    gemm = min((name for name in timings if name.startswith("GEMM")), key=lambda name: timings[name].median(clock))
    found = []
    for name, t in timings.items():
        row = {"name": name, "images": images[name], "rounds": t.rounds, "gap": gaps[name], "memory": memory.get(name)}
        for kind in ("wall", "cpu"):
            row[f"{kind}_ms"] = 1e3 * t.median(kind) / (images[name] if alone else 1)
            row[f"gemm_{kind}"] = t.ratio(timings[gemm], kind) * images[gemm] / images[name]
            row[f"faster_{kind}"] = t.ratio(timings[BEST], kind) * images[BEST] / images[name]
        row["per_second"] = images[name] / t.median()
        row["fastest_gemm"] = name == gemm
        found.append(row)
    return found


def line(row: dict, batch: int) -> list[str]:
    gemm = row["name"].startswith("GEMM")
    return [
        row["name"] + (" *" if row["fastest_gemm"] else ""),
        f"{row['images']} x 1" if batch == 1 else f"{row['images']:,} of {batch:,}" if row["images"] < batch else f"{batch:,}",
        str(row["rounds"]), number(row["wall_ms"]), number(row["cpu_ms"]), number(row["per_second"]),
        number(row["gemm_wall"]), number(row["gemm_cpu"]),
        "-" if gemm else number(row["faster_wall"]), "-" if gemm else number(row["faster_cpu"]),
        "-" if row["gap"] is None else f"{row['gap']:.0e}", number(row["memory"]),
    ]  # fmt: skip


def targets(results: dict[int, list[dict]], args: argparse.Namespace) -> list[dict]:
    """What was asked for, what was measured, and whether that is enough."""
    table = {n: {row["name"]: row for row in found} for n, found in results.items()}
    wanted = [
        (64, BEST, "gemm", "<=", 2.2, "must"),
        (1024, BEST, "gemm", "<=", 3.0, "must"),
        (1024, BEST, "gemm", "<=", 2.0, "stretch"),
        (1024, "spams.lasso, D", "faster", ">=", 12.0, "must"),
        (64, "spams.lasso, Q and q given", "faster", ">=", 3.5, "must"),
        (1024, "spams.lasso, Q and q given", "faster", ">=", 5.0, "must"),
        (64, SPLICE, "faster", ">=", 80.0, "must"),
        (1024, SPLICE, "faster", ">=", 80.0, "must"),
        (1, "spams.lasso, Q and q given", "faster", ">=", 4.0, "must"),
        (1, SPLICE, "faster", ">=", 20.0, "must"),
        (1, "ours, cold", "cold", ">=", 2.0, "must"),
        (1, "ours, cold", "cold", ">=", 5.0, "stretch"),
        (1024, "ours, one thread", "faster", ">=", 1.7, "must"),
        (1024, BEST, "memory", "<=", 600.0, "must"),
        (1024, BEST, "gap", "<=", 1e-6, "must"),
    ]
    words = {
        "gemm": "time of ours / fastest GEMM", "faster": "time of {} / ours", "cold": "time of SpLiCE's way / ours, cold",
        "memory": "extra MB", "gap": "max duality gap",
    }  # fmt: skip
    judged = []
    for n, name, what, sign, bound, kind in wanted:
        row = table.get(n, {}).get(name)
        other = table.get(n, {}).get(SPLICE)
        if row is None or (what == "cold" and other is None) or (what == "memory" and row["memory"] is None):
            continue
        if what == "cold":
            wall, cpu = (other[f"faster_{k}"] / row[f"faster_{k}"] for k in ("wall", "cpu"))
        else:
            wall, cpu = row.get(f"{what}_wall", row.get(what)), row.get(f"{what}_cpu")
        value = cpu if cpu is not None and decisive(args) == "cpu" else wall
        met = value <= bound if sign == "<=" else value >= bound
        judged.append(
            {"images": n, "what": words[what].format(name), "sign": sign, "bound": bound, "kind": kind, "wall": wall,
             "cpu": cpu, "met": bool(met)}
        )  # fmt: skip
    return judged if args.concepts == 10_000 and args.dimension == 512 else []


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    if args.peak:
        print(peak(*args.peak, args.threads))
        return
    import numpy as np
    from problems import splice_problem

    for library in ("scipy.linalg", "sklearn", "spams"):  # so that the facts name their BLAS
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    facts = machine_facts(args.threads, PACKAGES, args.date)
    print(facts_text(facts))
    methods = chosen(args)
    C, images = splice_problem(args.concepts, args.dimension, max(1024, *args.images), args.seed)
    report: dict = {"machine": facts, "concepts": args.concepts, "dimension": args.dimension, "l1": L1, "results": {}}
    report["seed"] = args.seed
    for n in args.images:
        Z = np.ascontiguousarray(images[: SINGLE if n == 1 else n])
        last = n == args.images[-1] and not args.no_memory
        shown = [
            name for name, method in methods.items() if not method.once and method.sizes[0] <= n <= method.sizes[1]
        ]
        memory = peaks([BEST] if args.quick else shown, Z, C, args.threads) if last else {}
        report["results"][n] = rows(*measure(methods, Z, C, n == 1, args), memory, n == 1, decisive(args))
        print(f"\nK = {args.concepts:,}, d = {args.dimension}, l1 = {L1}, N = {n:,}\n")
        print(table(HEAD, [line(row, n) for row in report["results"][n]]), flush=True)
    report["targets"] = targets(report["results"], args)
    if report["targets"]:
        print(f"\nTargets; {'processor time' if decisive(args) == 'cpu' else 'the wall clock'} decides\n")
        shown = [
            [t["what"], f"{t['images']:,}", t["kind"], f"{t['sign']} {number(t['bound'], 2)}", number(t["wall"]),
             number(t["cpu"]), "pass" if t["met"] else "MISS"]
            for t in report["targets"]
        ]  # fmt: skip
        print(table(("", "N", "", "wanted", "measured", "(CPU)", ""), shown))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
