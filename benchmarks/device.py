"""Training steps, codes and forward passes on a GPU, beside a dense step and the product: `python benchmarks/device.py`."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Timing, facts_text, interleaved, machine_facts, number, table, write_report
from train import PACKAGES, tokens

LR = 1e-4
PRODUCT, ROUNDED = "encoder product, float32", "encoder product, bf16"
FAMILIES = {"topk": {}, "batch_topk": {}, "nested_dictionary": {}}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256, help="of a forward pass of a ViT-B/16; 0: none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    return parser.parse_args(argv)


def finished(call: Callable, device: str) -> Callable:
    """The call with all kernels that it started."""

    def whole() -> object:
        result = call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return result

    return whole


def products(x, n: int) -> dict[str, Callable]:
    W = torch.randn(n, x.shape[1], device=x.device)
    a, b = x.bfloat16(), W.bfloat16()
    return {PRODUCT: lambda: (x @ W.T).shape, ROUNDED: lambda: (a @ b.T).shape}


def dense_step(x, n: int, k: int) -> Callable:
    """The step that everybody writes: a dense product, torch.topk, scatter, a dense decoder, autograd, fused Adam."""
    d = x.shape[1]
    W_enc = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(d, n, device=x.device), dim=0))
    W_dec = torch.nn.Parameter(W_enc.detach().T.contiguous())
    b_enc, b_dec = (torch.nn.Parameter(torch.zeros(size, device=x.device)) for size in (n, d))
    weights = [W_enc, W_dec, b_enc, b_dec]
    optimizer = torch.optim.Adam(weights, lr=LR, fused=x.is_cuda)

    def step() -> None:
        pre = torch.relu((x - b_dec) @ W_enc + b_enc)
        values, at = pre.topk(k, dim=1)
        xhat = torch.zeros_like(pre).scatter(1, at, values) @ W_dec + b_dec
        (x - xhat).square().sum(1).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return step


def our_steps(args: argparse.Namespace, x) -> dict[str, Callable]:
    """Steps of `train`: fused in full precision and with rounded selection, and by autograd."""
    from vlsae.activations.memory import TensorActivations
    from vlsae.training.loop import choose_engine
    from vlsae.training.recipe import make_config

    rows, place, data = {}, torch.device(args.device), TensorActivations(x.cpu())
    for family in FAMILIES:
        nested = {"prefixes": [args.latents // share for share in (16, 8, 4, 2, 1)]}
        for engine, selection in (("fused", "float32"), ("fused", "bfloat16"), ("torch", "float32")):
            if engine == "torch" and family != "topk":
                continue
            config = make_config(
                family, None,
                {"n_latents": args.latents, "k": args.k, "batch_size": len(x), "steps": 10**6, "lr": LR, "clip_gradient": 1.0,
                 "b_dec_init": "mean", "log_every": 10**6, "selection": selection,
                 **(nested if family == "nested_dictionary" else {})},
            )  # fmt: skip
            run = choose_engine(engine, config, place, data)(data, config, None, place, None)
            rows[f"step {family}: ours, {engine}, {selection}"] = lambda run=run: run.advance(x)
    return rows


def encoders(args: argparse.Namespace, x) -> dict[str, Callable]:
    from vlsae.dictionaries.topk import TopKDictionary

    sae = TopKDictionary(args.d, args.latents, k=args.k).to(x.device).requires_grad_(False)

    def dense() -> torch.Tensor:
        return torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc).topk(args.k, dim=1).values

    return {
        "codes: dense, torch.topk": dense,
        "codes: ours": lambda: sae.encode_sparse(x),
        "codes: ours, bf16 selection": lambda: sae.encode_sparse(x, "bfloat16"),
    }


def forward_passes(args: argparse.Namespace) -> dict[str, Callable]:
    """Patch tokens of a ViT-B/16 with random weights, from pixels that lie on the device."""
    import open_clip

    from vlsae.backbones import set_precision
    from vlsae.backbones.openclip import OpenClipBackbone

    rows, pixels = {}, torch.randn(args.images, 3, 224, 224, device=args.device)
    for precision in ("float32", "bfloat16"):
        plain = open_clip.create_model("ViT-B-16", device=args.device)
        model = set_precision(OpenClipBackbone(plain, None, "ViT-B-16"), precision)
        rows[f"tokens of ViT-B/16: ours, {precision}"] = lambda m=model: m.tokens(pixels, "vision.10.resid_post")
    plain = open_clip.create_model("ViT-B-16", device=args.device).eval()
    rows["tokens of ViT-B/16: open_clip whole, float32"] = torch.no_grad()(lambda: plain.encode_image(pixels))
    return rows


def peaks(calls: dict[str, Callable]) -> dict[str, float]:
    """Peak memory of the device over what lies there, of one call each, MB."""
    found = {}
    for name, call in calls.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        found[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def report(args: argparse.Namespace, timings: dict[str, Timing], peak: dict[str, float]) -> tuple[str, dict]:
    lines, records = [], {}
    for name, timing in timings.items():
        share = timing.ratio(timings[PRODUCT])
        per_second = (args.images if name.startswith("tokens") else args.batch) / timing.median()
        records[name] = {"wall_s": timing.wall, "x_product": share, "peak_mb": peak.get(name)}
        lines.append([name, number(1e3 * timing.median()), number(share), number(per_second), number(peak.get(name))])
    return table(["", "ms", "x product", "tokens or images/s", "peak MB"], lines), records


def main(argv: list[str]) -> None:
    args = parse(argv)
    x = tokens(args.batch, args.d).to(args.device)
    facts = machine_facts(torch.get_num_threads(), PACKAGES, args.date)
    on_gpu = args.device.startswith("cuda")
    facts["device"] = torch.cuda.get_device_name() if on_gpu else args.device
    facts["float32_matmul"] = torch.get_float32_matmul_precision()
    print(f"{facts_text(facts)}\n  {facts['device']}, products of float32: {facts['float32_matmul']}")
    print(f"d={args.d}, n={args.latents:,}, k={args.k}, batch {args.batch:,}, {args.rounds} rounds\n")
    calls = products(x, args.latents) | encoders(args, x)
    calls |= {"step topk: dense, autograd": dense_step(x, args.latents, args.k)} | our_steps(args, x)
    calls |= forward_passes(args) if args.images else {}
    calls = {name: finished(call, args.device) for name, call in calls.items()}
    timings = interleaved(calls, args.rounds)
    text, records = report(args, timings, peaks(calls) if on_gpu else {})
    print(text)
    if args.json:
        write_report(args, facts, records, [])


if __name__ == "__main__":
    main(sys.argv[1:])
