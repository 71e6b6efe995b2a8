"""One training step of sparse dictionaries, ours and others': `python benchmarks/train.py --threads 1`; see README.md."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
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

PACKAGES = ("numpy", "torch", "numba", "eai-sparsify", "overcomplete", "dictionary-learning", "sae-lens")
FUSED, BF16, TOPK, SINGLE = "ours, fused", "ours, fused, bf16 selection", "ours, TopK step", "ours, one thread"
BEST = {"batch_topk": 7.0, "nested_dictionary": 8.0, "relu": 5.0}  # wanted, times as fast as the best peer
OURS = {FUSED: ("fused", "float32"), BF16: ("fused", "bfloat16"),
        "ours, autograd": ("torch", "float32")}  # fmt: skip
PRODUCT, ROUNDED = "encoder product, float32", "encoder product, bf16"
MM = "encoder product, torch.mm"
L0_RELU = 64


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="topk", choices=("topk", "batch_topk", "nested_dictionary", "relu"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="rows whose name contains one of these")
    parser.add_argument("--parts", action="store_true", help="only say where the time of our step goes")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory in processes of their own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a row: print its peak memory
    return parser.parse_args(argv)


def tokens(n: int, d: int):
    """Tokens like those of patches: 24 of 4,096 directions, uneven in frequency, and noise; of length sqrt d."""
    import torch

    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4096, d, generator=g), dim=1)
    x = 0.02 * torch.randn(n, d, generator=g)
    for row in x.split(1024):
        at = (torch.rand(len(row), 24, generator=g) ** 2 * 4096).long()
        row += (directions[at] * torch.rand(len(row), 24, 1, generator=g)).sum(1)
    return x * d**0.5 / x.norm(dim=1).mean()


def our_step(args: argparse.Namespace, x, engine: str, selection: str, family: str = "") -> Callable[[], object]:
    """A step of `train`, with AuxK, dead tracking, clipping and the decoder bias."""
    import torch

    from vlsae.activations.memory import TensorActivations
    from vlsae.training.loop import choose_engine
    from vlsae.training.recipe import make_config

    family = family or args.family
    extra = {"relu": {"l1": 0.1, "dead_policy": "none"}}.get(family, {"k": args.k})
    if family == "nested_dictionary":
        extra["prefixes"] = [args.latents // share for share in (16, 8, 4, 2, 1)]
    config = make_config(
        family, None,
        {"n_latents": args.latents, "batch_size": len(x), "steps": 10**6, "lr": 1e-4, "clip_gradient": 1.0,
         "b_dec_init": "mean", "log_every": 10**6, "selection": selection, **extra},
    )  # fmt: skip
    place, data = torch.device("cpu"), TensorActivations(x)
    run = choose_engine(engine, config, place, data)(data, config, None, place, None)
    if family == "relu":  # where training ends up: few active latents; at the start half of them are
        scores = ((x[:256] - run.dictionary.b_dec) @ run.dictionary.W_enc).detach()
        run.dictionary.b_enc.data.fill_(-float(scores.flatten().topk(256 * L0_RELU).values[-1]))
    return lambda: run.advance(x)


def quickest_product(x, W) -> Callable[[], object]:
    """The yardstick: the product of a batch by whichever float32 product takes least processor time here."""
    import numpy as np
    import torch

    from vlsae import onednn

    rows = 256 if len(W) > 10_000 else 2048  # of which products take least time; all of them at these sizes
    out, parts = torch.empty(rows, len(W)), x.split(rows)
    ways = {
        "torch.mm": lambda part: torch.mm(part, W.T, out=out[: len(part)]),
        "numpy": lambda part: np.matmul(part.numpy(), W.numpy().T, out=out[: len(part)].numpy()),
    }
    if onednn.is_available():
        ways["oneDNN"] = lambda part: onednn.product(part, W)
    spent = dict.fromkeys(ways, float("inf"))
    for name in [*ways] * 3:
        start = time.process_time()
        ways[name](parts[0])
        spent[name] = min(spent[name], time.process_time() - start)
    best = min(spent, key=spent.get)
    print(
        f"the quickest float32 product here is {best}'s: "
        + ", ".join(f"{k} {1e3 * v:.0f} ms" for k, v in spent.items())
    )
    return lambda: [ways[best](part) for part in parts] and None


def rows_of(args: argparse.Namespace, x) -> dict[str, Callable[[], Callable]]:
    """How every row of the table makes its step; says which peers are missing."""
    import torch
    from peers import PEERS

    W = torch.randn(args.latents, args.d, generator=torch.Generator().manual_seed(1))

    def product(low: bool) -> Callable:
        a, b = (x.bfloat16(), W.bfloat16()) if low else (x, W)
        out = torch.empty(512, args.latents, dtype=a.dtype)
        return lambda: [torch.mm(part, b.T, out=out[: len(part)]) for part in a.split(512)] and None

    rows = {MM: lambda: product(False), ROUNDED: lambda: product(True), PRODUCT: lambda: quickest_product(x, W)}
    for name, (engine, selection) in OURS.items():
        rows[name] = lambda e=engine, s=selection: our_step(args, x, e, s)
    if args.family != "topk":
        rows[TOPK] = lambda: our_step(args, x, "fused", "float32", "topk")
    if args.threads > 1:
        rows[SINGLE] = lambda: single(our_step(args, x, "fused", "float32"))
    for name, (package, make) in PEERS[args.family].items():
        if version(package) is None:
            print(f"left out, {package} is not installed: {name}")
        else:
            rows[name] = lambda make=make: make(x, args.latents, args.k)
    wanted = [
        name for name in rows if not args.only or name in (PRODUCT, ROUNDED) or any(text in name for text in args.only)
    ]
    return {name: rows[name] for name in wanted}


def single(step: Callable[[], object]) -> Callable[[], object]:
    """The step on one thread."""
    import torch

    def call() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return step()
        finally:
            torch.set_num_threads(threads)

    return call


def targets(
    args: argparse.Namespace, timings: dict[str, Timing], best: str | None, peak_mb: float | None
) -> list[tuple]:
    """What was asked for at d = 768, n = 24,576, k = 32, and what was measured."""

    def ratio(a: str | None, b: str) -> tuple[float | None, float | None]:
        if a not in timings or b not in timings:
            return None, None
        return timings[a].ratio(timings[b]), timings[a].ratio(timings[b], "cpu")

    wanted = []
    if args.family == "topk":
        wanted.append(("ours, fused / encoder product, float32", "<=", 1.4, *ratio(FUSED, PRODUCT)))
        for peer, full, rounded in (("sparsify", 2.0, 3.0), ("overcomplete", 6.0, 9.0)):
            wanted.append((f"{peer} / ours, fused", ">=", full, *ratio(peer, FUSED)))
            wanted.append((f"{peer} / {BF16}", ">=", rounded, *ratio(peer, BF16)))
    else:
        wanted.append((f"best peer ({best}) / ours, fused", ">=", BEST[args.family], *ratio(best, FUSED)))
        wanted.append(("ours, fused / ours, TopK step", "<=", 1.15, *ratio(FUSED, TOPK)))
    wanted.append(("ours, one thread / ours, fused", ">=", 1.7, *ratio(SINGLE, FUSED)))
    wanted.append(("peak MB of ours, fused", "<=", 1600.0, peak_mb, None))
    return wanted


def parts_of_step(args: argparse.Namespace, x) -> str:
    """A table of where the time of our fused step goes: the product, every kernel, and what is left."""
    import torch

    from vlsae.dictionaries import selection_compiled
    from vlsae.training.fused import compiled

    spent: dict[str, float] = {}
    clock = time.process_time if args.threads == 1 else time.perf_counter

    def timed(function: Callable, name: Callable[..., str]) -> Callable:
        def call(*given, **options):
            start = clock()
            result = function(*given, **options)
            label = name(*given)
            spent[label] = spent.get(label, 0.0) + clock() - start
            return result

        return call

    from vlsae import onednn

    lines, product, quick, threads = [], torch.mm, onednn.product, selection_compiled.in_threads
    for label, chosen in (("float32", "float32"), ("bf16 selection", "bfloat16")):
        step = our_step(args, x, "fused", chosen)
        step()
        step()
        spent.clear()
        torch.mm = timed(product, lambda *_: "encoder product")
        onednn.product = timed(quick, lambda *_: "encoder product")
        for module in (selection_compiled, compiled):
            module.in_threads = timed(threads, lambda kernel, *_: kernel.__name__)
        start = clock()
        for _ in range(args.rounds):
            step()
        whole = clock() - start
        torch.mm, onednn.product = product, quick
        for module in (selection_compiled, compiled):
            module.in_threads = threads
        spent["everything else"] = whole - sum(spent.values())
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            lines.append([f"{label}: {name}", number(1e3 * seconds / args.rounds), f"{seconds / whole:.1%}"])
    return table(["", "CPU ms" if args.threads == 1 else "wall ms", "share"], lines)


def made(rows: dict[str, Callable[[], Callable]]) -> dict[str, Callable]:
    """The steps of all rows; a peer that cannot start is left out with its reason."""
    steps = {}
    for name, make in rows.items():
        try:
            steps[name] = make()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            if name.startswith(("ours", "encoder")):
                raise
            print(f"left out, {name} does not start here: {error}")
    return steps


def peak(name: str, argv: list[str]) -> float:
    """Peak memory of two steps of a row in a fresh process, MB."""
    command = [sys.executable, __file__, *argv, "--peak", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    x = tokens(args.batch, args.d)
    rows = rows_of(args, x)
    if args.peak:

        def twice() -> None:
            step = rows[args.peak]()
            step()
            step()

        print(extra_peak(twice))
        return
    facts = machine_facts(args.threads, PACKAGES, args.date)
    print(facts_text(facts))
    print(f"{args.family}: d={args.d}, n={args.latents:,}, k={args.k}, batch {args.batch:,}, {args.rounds} rounds\n")
    if args.parts:
        print(parts_of_step(args, x))
        return
    timings = interleaved(made(rows), args.rounds)
    best = min(
        (n for n in timings if not n.startswith(("ours", "encoder"))), key=lambda n: timings[n].median(), default=None
    )
    flops = 2 * args.batch * args.d * args.latents
    fastest = min(timings[name].median() for name in (PRODUCT, ROUNDED) if name in timings)
    lines, results = [], {}
    for name, timing in timings.items():
        wall = timing.median()
        results[name] = {
            "wall_s": timing.wall, "cpu_s": timing.cpu,
            **{f"x_product_{kind}": timing.ratio(timings[PRODUCT], kind) for kind in ("wall", "cpu")},
            **{f"best_peer_x_{kind}": None if best is None else timings[best].ratio(timing, kind) for kind in ("wall", "cpu")},
            "peak_mb": None if args.no_memory or name.startswith("encoder") else peak(name, argv),
        }  # fmt: skip
        r = results[name]
        lines.append([name, number(1e3 * wall), number(1e3 * timing.median("cpu")), number(args.batch / wall),
                      number(flops / wall / 1e9), f"{fastest / wall:.0%}", number(r["x_product_wall"]),
                      number(r["x_product_cpu"]), number(r["best_peer_x_wall"]), number(r["best_peer_x_cpu"]),
                      number(r["peak_mb"])])  # fmt: skip
    head = [
        "",
        "wall ms",
        "CPU ms",
        "tokens/s",
        "GF/s",
        "of peak",
        "x product",
        "(CPU)",
        "best peer / it",
        "(CPU)",
        "peak MB",
    ]
    print(table(head, lines))
    print(f"\nbest peer: {best}; x product: median over rounds of time against the float32 product of the same batch")
    print(
        "GF/s: of the encoder's product, the only dense one that is needed; of peak: against the fastest product here"
    )
    peak_mb = results[FUSED]["peak_mb"] if FUSED in results else None
    text, records = judged(targets(args, timings, best, peak_mb), args.threads)
    print(f"\n{text}")
    if args.json:
        write_report(args, facts, results, records)


if __name__ == "__main__":
    main(sys.argv[1:])
