"""Sparse codes of a trained TopK dictionary, ours and others': `python benchmarks/encode.py --threads 1`; see README.md."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path

from peers import without
from timing import facts_text, interleaved, judged, machine_facts, number, table, version, with_threads, write_report
from train import MM, PACKAGES, PRODUCT, quickest_product, tokens


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of training before, in batches of 4,096 tokens")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    return parser.parse_args(argv)


def trained(args: argparse.Namespace):
    """A dictionary for synthetic tokens, and tokens that it has not seen."""
    import vlsae

    data = tokens(20 * 4096 + args.batch, args.d)
    options = {"n_latents": args.latents, "k": args.k, "batch_size": 4096, "selection": "bfloat16"}
    sae = vlsae.train(data[: -args.batch], "topk", steps=args.steps, lr=3e-4, **options)
    return sae, data[-args.batch :].contiguous()


def peer_encoders(sae, x) -> dict[str, Callable]:
    """Peers' encoders with the weights of ours; says which are missing."""
    import torch

    rows = {}
    if version("eai-sparsify") is None:
        print("left out, eai-sparsify is not installed")
    else:
        from sparsify import SparseCoder, SparseCoderConfig

        theirs = SparseCoder(sae.d, SparseCoderConfig(num_latents=sae.n_latents, k=sae.k))
        theirs.encoder.weight.data, theirs.encoder.bias.data = sae.keys().clone(), sae.b_enc.data.clone()
        theirs.b_dec.data = sae.b_dec.data.clone()
        rows["sparsify"] = torch.no_grad()(lambda: theirs.encode(x).top_indices)
    if version("dictionary-learning") is None:
        print("left out, dictionary-learning is not installed")
    else:
        without("datasets", "nnsight", "wandb", "zstandard", "circuitsvis")
        from dictionary_learning.trainers.top_k import AutoEncoderTopK

        other = AutoEncoderTopK(sae.d, sae.n_latents, sae.k)
        other.encoder.weight.data, other.encoder.bias.data = sae.keys().clone(), sae.b_enc.data.clone()
        other.b_dec.data = sae.b_dec.data.clone()
        rows["dictionary_learning"] = torch.no_grad()(lambda: other.encode(x, return_topk=True)[2])
    return rows


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    import torch

    facts = machine_facts(args.threads, PACKAGES, args.date)
    print(facts_text(facts))
    sae, x = trained(args)
    keys, out = sae.keys(), torch.empty(512, args.latents)
    calls = {
        PRODUCT: quickest_product(x, keys),
        MM: lambda: [torch.mm(part, keys.T, out=out[: len(part)]) for part in x.split(512)] and None,
        "ours, encode_sparse": lambda: sae.encode_sparse(x),
        "ours, encode_sparse, bf16 selection": lambda: sae.encode_sparse(x, "bfloat16"),
        "ours, encode (dense)": lambda: sae.encode(x) is None,
        **peer_encoders(sae, x),
    }
    print(f"d={args.d}, n={args.latents:,}, k={args.k}, {args.batch:,} tokens, trained for {args.steps} steps")
    exact, rounded = (
        [set(row.nonzero()[:, 0].tolist()) for row in sae.encode_sparse(x, kind).dense()]
        for kind in ("float32", "bfloat16")
    )
    same = sum(a == b for a, b in zip(exact, rounded)) / len(exact)
    error = float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    print(
        f"its explained variance on these tokens {1 - error:.3f}; rows whose support bf16 selection keeps: {same:.4%}\n"
    )
    timings = interleaved(calls, args.rounds)
    best = min(
        (n for n in timings if not n.startswith(("ours", "encoder"))), key=lambda n: timings[n].median(), default=None
    )
    lines, results = [], {"same_support": same}
    for name, timing in timings.items():
        ratio, faster = timing.ratio(timings[PRODUCT]), None if best is None else timings[best].ratio(timing)
        results[name] = {"wall_s": timing.wall, "cpu_s": timing.cpu, "x_product": ratio, "best_peer_x": faster}
        by_cpu = timing.ratio(timings[PRODUCT], "cpu")
        faster_cpu = None if best is None else timings[best].ratio(timing, "cpu")
        wall = timing.median()
        lines.append([name, number(1e3 * wall), number(args.batch / wall), number(ratio), number(by_cpu),
                      number(faster), number(faster_cpu)])  # fmt: skip
    print(table(["", "wall ms", "tokens/s", "x product", "(CPU)", "best peer / it", "(CPU)"], lines))
    ours, low = timings["ours, encode_sparse"], timings["ours, encode_sparse, bf16 selection"]
    peer = timings.get(best, None)
    wanted = [
        ("ours, encode_sparse / product", "<=", 1.3, *(ours.ratio(timings[PRODUCT], c) for c in ("wall", "cpu"))),
        (f"best peer ({best}) / ours, bf16 selection", ">=", 2.2,
         *((None, None) if peer is None else (peer.ratio(low, c) for c in ("wall", "cpu")))),
        ("rows with the same support under bf16 selection", ">=", 0.999, same, None),
    ]  # fmt: skip
    text, records = judged(wanted, args.threads)
    print(f"\n{text}")
    if args.json:
        write_report(args, facts, results, records)


if __name__ == "__main__":
    main(sys.argv[1:])
