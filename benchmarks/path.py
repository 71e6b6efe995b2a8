"""Where the time of the whole path goes, stage by stage: `python benchmarks/path.py demo` or `... full`; see README.md."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

from stages import REST, Stages
from timing import facts_text, interleaved, machine_facts, number, table, with_threads
from train import tokens

PACKAGES = ("numpy", "torch", "numba", "open_clip_torch", "matplotlib")
MODEL, PRODUCT, CHOICE, COMPILE = "model", "encoder product", "choosing codes", "compiling"
PARTS = (MODEL, PRODUCT, CHOICE, COMPILE, REST)
FREE = ("extract", "train")  # stages that may take what they take: the model, and the optimiser
SITES = "vision.-2.resid_post", "vision.pooled"
ALLOWED = 0.10  # of the whole, for what a stage adds to extraction, encoder product and optimiser


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("demo", "full"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=3000, help="demo: scenes to train on")
    parser.add_argument("--held-out", type=int, default=2000, help="demo: scenes to score on")
    parser.add_argument("--tokens", type=int, default=100_000, help="full: at 196 an image")
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--passes", type=int, default=1, help="full: of training over the tokens")
    parser.add_argument("--probe", type=int, default=8, help="full: images that really go through the ViT-B/16")
    parser.add_argument("--words", type=int, default=64, help="full: of the vocabulary for names")
    parser.add_argument("--rounds", type=int, default=2, help="full: of the comparison with encoding alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    return parser.parse_args(argv)


def watch_parts(stages: Stages) -> None:
    """The parts that are the same everywhere."""
    import torch
    from numba.core.dispatcher import Dispatcher

    from vlsae import onednn
    from vlsae.backbones.base import Backbone
    from vlsae.dictionaries.base import Dictionary

    for method in ("tokens_at", "forward_image", "encode_text", "readout_directions"):
        stages.watch(Backbone, method, part=MODEL)
    stages.watch(Dictionary, "encode_sparse", part=CHOICE)
    stages.watch(torch, "mm", part=PRODUCT)  # blocks of pre-activations are the only user, of either product
    stages.watch(onednn, "product", part=PRODUCT)
    stages.watch(Dispatcher, "_compile_for_args", part=COMPILE)


def demo(args: argparse.Namespace, stages: Stages, out: Path) -> None:
    """`vlsae demo`, with its stages as it calls them."""
    import vlsae.report.demo as report
    from vlsae import demo as module

    for name, stage in {
        "extract": "extract", "train": "train", "latent_statistics": "statistics", "_names": "names",
        "localise": "localisation", "reconstruction": "reconstruction", "spliced_zero_shot": "zero-shot",
        "patch_owners": "truth of the scenes", "words_in_scenes": "SpLiCE",
    }.items():  # fmt: skip
        stages.watch(module, name, stage)
    stages.watch(report, "write_demo_report", "report")
    stages.watch(report, "latent_cards", "heatmaps")
    watch_parts(stages)
    with stages.stage("the rest of it"):
        module.run_demo(out, n_train=args.scenes, n_test=args.held_out, progress=False)


def stand_in(args: argparse.Namespace):
    """A ViT-B/16 with random weights whose tokens are drawn instead of computed, and the real one's seconds an image."""
    import time

    import open_clip
    import torch

    from vlsae.backbones.openclip import OpenClipBackbone
    from vlsae.world import scenes

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16", pretrained=None)
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    real = OpenClipBackbone(clip, tokenizer, "ViT-B/16, random weights")
    drawn = [scene.image for scene in scenes(args.probe, seed=1, resolution=224)]
    real.tokens_at(drawn[:1], SITES)
    start = time.process_time()
    real.tokens_at(drawn, SITES)
    seconds = (time.process_time() - start) / len(drawn)
    pool = tokens(196 * 64, 768).view(64, 196, 768)

    class StandIn(OpenClipBackbone):
        images = 0  # that would have gone through the model

        def tokens_at(self, images, sites):
            self.images += len(images)
            at = torch.arange(self.images - len(images), self.images) % len(pool)
            shift = torch.randn(len(at), 1, 768, generator=torch.Generator().manual_seed(self.images))
            x = pool[at] + 0.1 * shift
            return {str(sites[0]): torch.cat([x[:, :1], x], 1), str(sites[1]): x[:, :1, :512]}

        def forward_vision(self, pixels):
            self.images += len(pixels)
            return torch.randn(len(pixels), 512, generator=torch.Generator().manual_seed(self.images))

    return StandIn(clip, tokenizer, real.spec), seconds


def full(args: argparse.Namespace, stages: Stages, out: Path) -> dict:
    """Extraction, training, statistics, report with names and heatmaps, and localisation, on synthetic tokens."""
    import numpy as np

    import vlsae
    from vlsae.metrics import localise
    from vlsae.report import run as report

    n_images = -(-args.tokens // 196)
    model, seconds = stand_in(args)
    source = vlsae.load_images(vlsae.world.scenes(n_images, seed=2, resolution=224))
    watch_parts(stages)
    with stages.stage("extract"):
        store = vlsae.extract(model, source, SITES, out / "activations", progress=False)
    computed = {"extract": model.images}
    with stages.stage("train"):
        steps = max(1, args.passes * len(store) // 4096)
        sae = vlsae.train(store, "topk", n_latents=args.latents, k=args.k, batch_size=4096, steps=steps, progress=False)
    with stages.stage("statistics"):
        statistics = vlsae.latent_statistics(sae, store, labels=np.arange(n_images) % 20, n_classes=20, progress=False)
        statistics.save(out / "statistics")
    for name, stage in {"name_latents": "names", "reconstruction": "reconstruction",
                        "latent_cards": "heatmaps"}.items():  # fmt: skip
        stages.watch(report, name, stage)
    words = [f"{a} {b}" for a in vlsae.world.concepts()["color"] for b in vlsae.world.concepts()["object"]]
    with stages.stage("report"):
        report.write_report(store, sae, statistics, out / "r.html", model=model, images=source,
                            vocabulary=words[: args.words])  # fmt: skip
    with stages.stage("localisation"):
        x = store.images(0, n_images)
        localise(sae.encode_sparse, x, np.random.default_rng(0).integers(-1, 20, x.shape[:2]), 20)
    stages.release()
    for stage, images in computed.items():
        for clock in (stages.cpu, stages.wall):
            clock[stage, MODEL] += images * seconds
    print(
        f"{store.n_images} images, {len(store):,} synthetic tokens; the ViT-B/16 (random weights) took {seconds:.3f} s"
    )
    print(f"an image, measured on {args.probe}: times of the model below are that times the number of images\n")
    return streams(args, sae, store)


def streams(args: argparse.Namespace, sae, store) -> dict:
    """Tokens a second of statistics and heatmaps, each with its encoding, against encoding alone, taking turns."""
    from types import SimpleNamespace

    import vlsae
    from vlsae.heatmaps import stored_grids

    x = store.images(0, 16)
    part = SimpleNamespace(d=store.d, n_images=16, labels=[i % 4 for i in range(16)], class_names=list("abcd"),
                           batches=lambda n: ((i, x[i : i + n]) for i in range(0, 16, n)))  # fmt: skip
    latents, flat = range(24), x.flatten(0, 1)

    def heatmaps():
        grids = stored_grids(store, sae, range(16), latents).numpy()
        return [store.geometry.to_image(grid[0], (224, 224)) for grid in grids]

    calls = {
        "encode_sparse alone": lambda: sae.encode_sparse(flat),
        "statistics": lambda: vlsae.latent_statistics(sae, part, progress=False),
        "heatmaps": heatmaps,
    }
    timings, lines, found = interleaved(calls, args.rounds), [], {}
    for name, timing in timings.items():
        speed = 1 / timing.ratio(timings["encode_sparse alone"], "cpu")
        found[name] = {"cpu_s": timing.cpu, "x_encoding_speed": speed}
        lines.append(
            [name, number(len(flat) / timing.median("cpu")), number(speed), "" if speed >= 0.5 else "MISS: < 0.5"]
        )
    print(table(["stream, with its encoding", "tokens/s (CPU)", "x encoding speed", ""], lines), "\n")
    return found


def report_table(stages: Stages) -> list[dict]:
    """Print a row a stage and return them; what a stage adds beyond model, product and optimiser is judged."""
    whole = sum(seconds for (stage, part), seconds in stages.cpu.items() if stage != "outside" and part != COMPILE)
    rows, lines = [], []
    for name in (n for n in stages.names() if n != "outside"):
        parts = {part: stages.cpu.get((name, part), 0.0) for part in PARTS}
        own = 0.0 if name in FREE else parts[CHOICE] + parts[REST]
        total = sum(parts.values()) - parts[COMPILE]
        rows.append({"stage": name, "cpu_s": total, "wall_s": stages.total(name, "wall"), "share": total / whole,
                     "own_share": own / whole, **parts})  # fmt: skip
        again = name not in FREE and parts[MODEL] / whole > ALLOWED
        verdict = "MISS: > 10 %" if own / whole > ALLOWED else "the model again: > 10 %" if again else ""
        lines.append([name, number(total), number(stages.total(name, "wall")), f"{total / whole:.1%}",
                      *(number(parts[p]) for p in PARTS), "free" if name in FREE else f"{own / whole:.1%}",
                      verdict])  # fmt: skip
    print(table(["stage", "CPU s", "wall s", "share", *PARTS, "own share", ""], lines))
    print(
        f"\n{whole:.1f} s of processor time without compiling, which happens once an installation and is in no share."
    )
    print(
        f"Columns {MODEL} to {REST}: processor seconds within the stage; own share: {CHOICE} and {REST}, of the whole."
    )
    return rows


def main(argv: list[str]) -> None:
    args = parse(argv)
    with_threads(args.threads)
    facts = machine_facts(args.threads, PACKAGES, args.date)
    print(facts_text(facts), "\n")
    import vlsae.training  # noqa: F401 - imports are no stage

    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        found = {"demo": demo, "full": full}[args.what](args, stages, Path(folder))
    stages.release()
    rows = report_table(stages)
    if args.json:
        result = {"facts": facts, "arguments": vars(args) | {"json": None}, "stages": rows, "streams": found}
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
