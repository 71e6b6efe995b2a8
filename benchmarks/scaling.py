"""How time and memory of a training step and of encoding grow: `python benchmarks/scaling.py --figure scaling.png`."""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from timing import extra_peak, facts_text, machine_facts, number, table, with_threads
from train import PACKAGES, our_step, tokens

BASE = {"tokens": 2048, "latents": 8192, "k": 32, "threads": 1}
GRID = {"tokens": [512, 1024, 2048, 4096, 8192], "latents": [2048, 4096, 8192, 16384, 32768], "k": [8, 16, 32, 64],
        "threads": [1, 2]}  # fmt: skip
QUICK = {"tokens": [512, 1024, 2048], "latents": [2048, 4096, 8192], "k": [8, 32], "threads": [1]}
JOBS = {"training step": "train", "encoding": "encode"}
# one dense product of tokens x d x latents is most of the work; what is done for the k active codes is small beside it
TIME = {"tokens": 1.0, "latents": 1.0, "k": 0.0, "threads": -1.0}
TOLERANCE = 0.25  # of a slope against theory: smaller terms and caches bend the lines


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls a point, of which the median counts")
    parser.add_argument("--quick", action="store_true", help="d = 192 and few sizes: does it still run?")
    for name, sizes in GRID.items():
        told = f"default {' '.join(map(str, sizes))}; a single one is kept throughout"
        parser.add_argument(f"--{name}", type=int, nargs="+", default=None, help=told)
    parser.add_argument("--figure", type=Path, help="a PNG with a panel for each axis and kind")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)  # measure one point and print it
    args = parser.parse_args(argv)
    if args.quick:
        args.d, args.rounds = 192, 2
    chosen = {name: getattr(args, name) or (QUICK if args.quick else GRID)[name] for name in GRID}
    args.grid = {name: sizes for name, sizes in chosen.items() if len(sizes) > 1}
    args.base = BASE | {name: getattr(args, name)[0] for name in GRID if len(getattr(args, name) or ()) == 1}
    return args


def expected_mb(job: str, d: int, at: dict) -> float:
    """Theory of the memory, beyond libraries, inputs and (encoding) the weights.

    Training: two matrices and two moments of each, a block of pre-activations, three arrays like the tokens (centred,
    residual, gradient) and some 40 bytes an active code. Encoding: the block, the centred tokens and what the look for
    values that are not finite leaves with the allocator, 28 bytes a code and 8 of room for it.
    """
    from vlsae.dictionaries.selection import CHUNK, LEAST

    n, tokens, codes = at["latents"], at["tokens"], at["tokens"] * at["k"]
    block = 4 * n * min(tokens, max(LEAST, CHUNK // n))
    arrays = 24 * n * d + 3 * 4 * tokens * d + 40 * codes if job == "train" else 8 * tokens * d + 36 * codes
    return (block + arrays) / 2**20


def measure(args: argparse.Namespace, job: str, at: dict) -> dict[str, float]:
    """Seconds a call and peak memory at one point, in a process of its own."""
    import torch

    from vlsae.dictionaries.topk import TopKDictionary

    x = tokens(at["tokens"], args.d)
    options = argparse.Namespace(family="topk", latents=at["latents"], k=at["k"], d=args.d)
    made = []
    if job == "train":
        warm = our_step(argparse.Namespace(family="topk", latents=256, k=8, d=args.d), x[:64], "fused", "float32")
        warm()  # loads compiled code

        def first() -> None:
            made.append(our_step(options, x, "fused", "float32"))
            made[0]()
            made[0]()
    else:
        sae = TopKDictionary(args.d, at["latents"], k=at["k"]).requires_grad_(False)
        sae.encode_sparse(x[:1])
        made.append(lambda: sae.encode_sparse(x))
        first = made[0]
    peak, wall, cpu = extra_peak(first), [], []
    for _ in range(args.rounds):
        start = time.perf_counter(), time.process_time()
        made[0]()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    assert torch.get_num_threads() == at["threads"]
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu), "mb": peak}


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the least-squares line through logarithms."""
    import numpy as np

    return round(float(np.polyfit(np.log(xs), np.log(ys), 1)[0]), 4) + 0.0  # no negative zero


def judged(args: argparse.Namespace, points: dict) -> list[dict]:
    """A row for each job, kind and axis: measured slope, slope of theory, and both ends."""
    rows = []
    for job, short in JOBS.items():
        for kind in ("time", "memory"):
            for axis, sizes in args.grid.items():
                if kind == "memory" and axis == "threads":
                    continue
                found = [points[short, axis, size] for size in sizes]
                key = "mb" if kind == "memory" else "wall_s" if axis == "threads" else "cpu_s"
                ys = [point[key] for point in found]
                if kind == "memory":
                    theory = [expected_mb(short, args.d, {**args.base, axis: size}) for size in sizes]
                else:  # through the middle of the points
                    middle = [statistics.geometric_mean(values) for values in (sizes, ys)]
                    theory = [middle[1] * (size / middle[0]) ** TIME[axis] for size in sizes]
                rows.append({"job": job, "kind": kind, "axis": axis, "sizes": sizes, "values": ys, "theory": theory,
                             "measured": slope(sizes, ys), "expected": slope(sizes, theory)})  # fmt: skip
    return rows


def draw(args: argparse.Namespace, rows: list[dict], path: Path) -> None:
    """A panel for each axis (columns) and kind (rows): points, and dashed what theory expects."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes_names = list(args.grid)
    fig = Figure(figsize=(3.6 * len(axes_names), 7.2), dpi=130, layout="constrained")
    panels = fig.subplots(2, len(axes_names), squeeze=False, sharey="row")
    styles = {"training step": ("#0072B2", "o"), "encoding": ("#D55E00", "s")}
    for panel in panels.flat:
        panel.set_visible(False)
    for row in rows:
        column = axes_names.index(row["axis"])
        panel = panels[("time", "memory").index(row["kind"]), column]
        panel.set_visible(True)
        colour, marker = styles[row["job"]]
        x = np.array(row["sizes"], float)
        panel.loglog(x, row["values"], marker=marker, color=colour, linewidth=1.8,
                     label=f"{row['job']}: {row['measured']:+.2f} (theory {row['expected']:+.2f})")  # fmt: skip
        panel.loglog(x, row["theory"], "--", color=colour, linewidth=1.1, alpha=0.8)
        panel.set_xticks(x, [f"{int(v):,}" for v in x], fontsize=8)
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        panel.grid(color="#e6eaee", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel({"tokens": "tokens a batch", "k": "active latents a token, k"}.get(row["axis"], row["axis"]))
        panel.legend(title="slope", fontsize=8, title_fontsize=8, frameon=False, loc="best")
        if column == 0:
            panel.set_ylabel("processor time a call, s" if row["kind"] == "time" else "peak memory, MB")
        if row["axis"] == "threads":
            panel.set_title("wall time", fontsize=9)
    fixed = ", ".join(f"{name} {size:,}" for name, size in args.base.items())
    fig.suptitle(f"TopK, d = {args.d}; median of n = {args.rounds} calls a point; dashed: theory\nwhere not varied: {fixed}",
                 fontsize=10)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.point["threads"] if args.point else 1)
    if args.point:
        print(json.dumps(measure(args, args.point.pop("job"), args.point)))
        return
    facts = machine_facts(1, PACKAGES, args.date)
    print(facts_text(facts), "\n")
    points, known = {}, {}
    for axis, sizes in args.grid.items():
        for size in sizes:
            for short in JOBS.values():
                at = {**args.base, axis: size, "job": short}
                key = json.dumps(at)
                if key not in known:
                    command = [sys.executable, __file__, *argv, "--point", key]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise RuntimeError(f"The point {key} failed:\n{done.stderr}")
                    known[key] = json.loads(done.stdout.splitlines()[-1])
                    known[key]["expected_mb"] = expected_mb(short, args.d, at)
                points[short, axis, size] = known[key]
    rows = judged(args, points)
    lines = [
        [f"{r['job']}, {r['kind']}", r["axis"], f"{r['sizes'][0]:,} to {r['sizes'][-1]:,}", number(r["values"][0]),
         number(r["values"][-1]), f"{r['measured']:+.2f}", f"{r['expected']:+.2f}",
         "" if abs(r["measured"] - r["expected"]) <= TOLERANCE else "differs"]
        for r in rows
    ]  # fmt: skip
    print(table(["TopK", "against", "range", "first", "last", "slope", "theory", ""], lines))
    fixed = ", ".join(f"{name} {size:,}" for name, size in args.base.items())
    print(
        f"\nd = {args.d}; where not varied: {fixed}. Time: processor seconds (threads: wall), median of {args.rounds} calls."
    )
    print("Memory: MB beyond libraries, tokens and, for encoding, weights. Slopes of log y against log x.")
    if args.figure:
        draw(args, rows, args.figure)
    if args.json:
        result = {"facts": facts, "d": args.d, "base": args.base, "points": known, "slopes": rows}
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
