"""Patch tokens of a ViT-B/16, ours and others': `python benchmarks/extract.py --threads 1`; see README.md."""

from __future__ import annotations

import argparse
import datetime
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

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

PACKAGES = ("torch", "open_clip_torch", "transformers", "numpy")
SITE = "vision.-2.resid_post"
HOOK, HF = "open_clip, full forward and hook", "transformers, sdpa, output_hidden_states"
OURS = {"ours, float32": "float32", "ours, float32_onednn": "float32_onednn", "ours, bfloat16": "bfloat16"}
PRODUCTS = {
    "product, float32": "float32",
    "product, float32, oneDNN": "float32_onednn",
    "product, bfloat16": "bfloat16",
}
DISK = "ours, bfloat16, vlsae.extract from decoded images to disk"
FILES = "ours, bfloat16, vlsae.extract from JPEG files to disk"
TARGETS = {"ours, bfloat16": 2.7, "ours, float32": 1.1, "ours, float32_onednn": 1.1}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arch", default="ViT-B-16", help="a ViT of open_clip with GELU, random weights")
    parser.add_argument("--images", type=int, default=32, help="images a call")
    parser.add_argument("--batch", type=int, default=8, help="images a forward pass, the same for all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="ViT-B-32, 8 images, 1 round: does it still run?")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory in processes of their own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a row: print its peak memory
    args = parser.parse_args(argv)
    if args.quick:
        args.arch, args.images, args.rounds = "ViT-B-32", 8, 1
    return args


def ours(args: argparse.Namespace, precision: str):
    """The architecture with random weights, the same in every precision."""
    import open_clip
    import torch

    from vlsae.backbones import set_precision
    from vlsae.backbones.openclip import OpenClipBackbone

    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of random weights
    torch.manual_seed(0)
    return set_precision(OpenClipBackbone(open_clip.create_model(args.arch), None, args.arch), precision)


def hugging_face(visual):
    """transformers' vision tower with the weights of open_clip's."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    width, blocks = visual.conv1.out_channels, visual.transformer.resblocks
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=len(blocks), hidden_act="gelu",
        num_attention_heads=blocks[0].attn.num_heads, image_size=visual.image_size[0], patch_size=visual.patch_size[0],
        attn_implementation="sdpa",
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    tower = getattr(model, "vision_model", model)
    pairs = [(tower.embeddings.class_embedding, visual.class_embedding),
             (tower.embeddings.patch_embedding.weight, visual.conv1.weight),
             (tower.embeddings.position_embedding.weight, visual.positional_embedding),
             (tower.pre_layrnorm.weight, visual.ln_pre.weight), (tower.pre_layrnorm.bias, visual.ln_pre.bias)]  # fmt: skip
    for there, here in zip(tower.encoder.layers, blocks):
        names = [("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                 ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]  # fmt: skip
        for a, b in names:
            a, b = there.get_submodule(a), here.get_submodule(b)
            pairs += [(a.weight, b.weight), (a.bias, b.bias)]
        for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = there.self_attn.get_submodule(name)
            pairs += [
                (part.weight, here.attn.in_proj_weight.chunk(3)[i]),
                (part.bias, here.attn.in_proj_bias.chunk(3)[i]),
            ]
    with torch.no_grad():
        for a, b in pairs:
            a.copy_(b)
    return model


def rows_of(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Callable]]:
    """How every row makes its call; calls of the first rows give the tokens of all images, `[images, T, d]`."""
    import torch

    @cache
    def pixels():
        import open_clip

        side = open_clip.get_model_config(args.arch)["vision_cfg"]["image_size"]
        return torch.randn(args.images, 3, side, side, generator=torch.Generator().manual_seed(0))

    def batched(forward: Callable) -> Callable:
        x = pixels()
        return torch.no_grad()(lambda: torch.cat([forward(part) for part in x.split(args.batch)]))

    def hooked() -> Callable:
        visual, found = ours(args, "float32").visual, []
        visual.transformer.resblocks[-2].register_forward_hook(lambda _m, _a, output: found.append(output))
        return batched(lambda x: (visual(x), found.pop())[1])

    def by_transformers() -> Callable:
        model = hugging_face(ours(args, "float32").visual)
        return batched(lambda x: model(pixel_values=x, output_hidden_states=True).hidden_states[-2])

    def tokens(precision: str) -> Callable:
        model = ours(args, precision)
        return batched(lambda x: model.tokens(x, SITE))

    def product(kind: str) -> Callable:
        """The first product of an MLP, one forward pass long: what the hardware gives a layer at best."""
        from vlsae.backbones.packed import pack

        visual = ours(args, "float32").visual
        width, n_tokens = visual.conv1.out_channels, len(visual.positional_embedding)
        layer = torch.nn.Linear(width, 4 * width)
        x = torch.randn(args.batch * n_tokens, width)
        if kind == "bfloat16":
            layer, x = layer.bfloat16(), x.bfloat16()
        elif kind == "float32_onednn":
            pack(layer)
        return torch.no_grad()(lambda: layer(x) is None)

    def to_disk(images) -> Callable:
        import vlsae

        model, out = ours(args, "bfloat16"), folder / "store"

        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            vlsae.extract(model, images, SITE, out, batch_size=args.batch, shard_images=args.images, progress=False)

        return run

    def pictures():
        from vlsae.world import scenes

        return [scene.image for scene in scenes(args.images, seed=0, resolution=256)]

    def files() -> Path:
        place = folder / "photos"
        place.mkdir(exist_ok=True)
        for i, image in enumerate(pictures()):
            image.save(place / f"{i:05d}.jpg", quality=95)
        return place

    return {
        HOOK: hooked, HF: by_transformers,
        **{name: lambda p=precision: tokens(p) for name, precision in OURS.items()},
        DISK: lambda: to_disk(pictures()), FILES: lambda: to_disk(files()),
        **{name: lambda k=kind: product(k) for name, kind in PRODUCTS.items()},
    }  # fmt: skip


def flops(args: argparse.Namespace) -> tuple[float, float]:
    """Of the blocks up to the site, an image; and of one call of a product row."""
    visual = ours(args, "float32").visual
    width, n, blocks = visual.conv1.out_channels, len(visual.positional_embedding), len(visual.transformer.resblocks)
    block = 2 * n * 12 * width**2 + 4 * n**2 * width
    return (blocks - 1) * block, 2 * args.batch * n * 4 * width**2


def peak(name: str, argv: list[str]) -> float:
    """Peak memory of a row, weights included, in a fresh process, MB."""
    command = [sys.executable, __file__, *argv, "--peak", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(args: argparse.Namespace, argv: list[str], folder: Path) -> None:
    from vlsae import onednn

    rows = rows_of(args, folder)
    if not onednn.is_available():
        print("left out, this torch has no oneDNN: the rows with float32_onednn")
        rows = {name: make for name, make in rows.items() if "oneDNN" not in name and "onednn" not in name}
    if args.peak:
        print(extra_peak(lambda: rows[args.peak]()()))
        return
    facts = machine_facts(args.threads, PACKAGES, args.date)
    print(facts_text(facts))
    print(
        f"{args.arch}, random weights, {SITE}; {args.images} images in batches of {args.batch}, {args.rounds} rounds\n"
    )
    timings = interleaved({name: make() for name, make in rows.items()}, args.rounds)
    work, product_work = flops(args)
    clock = "cpu" if args.threads == 1 else "wall"  # waiting threads spin
    reached = {k: product_work / timings[name].median(clock) for name, k in PRODUCTS.items() if name in timings}
    exact, lines, results = timings[HOOK].result, [], {}
    for name, timing in timings.items():
        wall, is_product = timing.median(), name in PRODUCTS
        shown = hasattr(timing.result, "norm")
        error = float((timing.result - exact).norm() / exact.norm()) if shown else None
        rate = (product_work if is_product else args.images * work) / timing.median(clock) / 1e9
        kind = OURS.get(name, "bfloat16" if name in (DISK, FILES) else "float32")
        results[name] = {
            "wall_s": timing.wall, "cpu_s": timing.cpu, "relative_error": error, "gflops": rate,
            "faster": None if is_product else timings[HOOK].ratio(timing),
            "faster_cpu": None if is_product else timings[HOOK].ratio(timing, "cpu"),
            "of_product": None if is_product else 1e9 * rate / reached[kind],
            "peak_mb": None if args.no_memory or is_product else peak(name, argv),
        }  # fmt: skip
        r, each = results[name], args.images / wall
        n_tokens = exact.shape[1]
        lines.append([name, number(1e3 * wall), number(1e3 * timing.median("cpu")), "-" if is_product else number(each),
                      "-" if is_product else number(n_tokens * each), number(rate), number(r["of_product"]),
                      number(r["faster"]), number(r["faster_cpu"]), number(error), number(r["peak_mb"])])  # fmt: skip
    head = [
        "",
        "wall ms",
        "CPU ms",
        "images/s",
        "tokens/s",
        "GF/s",
        "of product",
        "x hook",
        "(CPU)",
        "error",
        "peak MB",
    ]
    print(table(head, lines))
    wanted = [
        (f"{HOOK} / {name}", ">=", bound, results[name]["faster"], results[name]["faster_cpu"])
        for name, bound in TARGETS.items()
        if name in results
    ]
    text, records = judged(wanted, args.threads)
    print(f"\n{text}")
    if args.json:
        write_report(args, facts, results, records)


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, argv, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
