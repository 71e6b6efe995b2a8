"""Commands of the dictionary side: demo, extract, train, stats, heatmap, report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = Path("runs/run")
OPENED = "of vlsae or of another project: folder, file, or user/repository"


def add_commands(add: Callable[[str, str, Path], argparse.ArgumentParser]) -> None:
    """Declare the commands; `add` makes one with the common options."""
    demo = add("demo", "Run everything on the embedded model and scenes, and write a report.", Path("runs/demo"))
    demo.add_argument("--scenes", type=int, default=3000, help="scenes to train on")

    _evaluation_options(add("evaluate", "Compare dictionary families on the embedded model.", Path("runs/evaluate")))

    extract = add(
        "extract", "Write a model's tokens of your images, or embeddings of texts, to disk.", RUN / "activations"
    )
    extract.add_argument(
        "images", help="a picture, a folder, a .csv with a column 'path', a .txt list; for text.pooled a .txt of texts"
    )
    extract.add_argument("--model", default="tiny", help="tiny, tiny16, open_clip:ARCH/TAG, hf:ID, or a folder")
    extract.add_argument("--site", nargs="+", default=["vision.-2.resid_post"], help="TOWER.BLOCK.STREAM")
    extract.add_argument("--tokens", default="patches", choices=["patches", "cls", "patches+cls", "all", "random_k"])
    extract.add_argument("--random-k", type=int, default=0, help="tokens an image with --tokens random_k")
    extract.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    extract.add_argument(
        "--precision", default="float32", choices=["float32", "float32_onednn", "bfloat16"],
        help="in which the vision tower computes; float32_onednn is quicker on AMD, bfloat16 most of all and 1 %% off",
    )  # fmt: skip
    extract.add_argument("--batch-size", type=int, default=None, help="images a forward pass; chosen where not given")
    extract.add_argument("--shard-images", type=int, default=512, help="images a shard of the store")
    extract.add_argument("--strict", action="store_true", help="fail at the first unreadable image")
    extract.add_argument("--rank", type=int, default=None, help="this job of several that fill one store, from 0")
    extract.add_argument("--world-size", type=int, default=None, help="how many jobs; both from torchrun, else one job")
    extract.add_argument("--device", default="cpu")

    train = add("train", "Train a dictionary on extracted activations.", RUN / "dictionary")
    train.add_argument("--data", type=Path, default=RUN / "activations", help="the store")
    _training_options(train)

    stats = add("stats", "Take the statistics of every latent in one pass.", RUN / "statistics")
    stats.add_argument("--data", type=Path, default=RUN / "activations", help="the store")
    stats.add_argument("--dictionary", default=RUN / "dictionary", help=OPENED)
    stats.add_argument("--top", type=int, default=16, help="reference images a latent")

    heatmap = add("heatmap", "Draw where a latent is active in a picture.", Path("heatmap.png"))
    heatmap.add_argument("image", help="a picture file")
    heatmap.add_argument("--dictionary", default=RUN / "dictionary", help=OPENED)
    heatmap.add_argument("--model", default=None, help="the dictionary's own where not given")
    heatmap.add_argument("--latent", type=int, nargs="*", default=None, help="the strongest 4 where not given")
    heatmap.add_argument("--style", default="overlay", choices=["overlay", "contour"])

    report = add("report", "Write the report of a run as one HTML file.", RUN / "report.html")
    report.add_argument("--data", type=Path, default=RUN / "activations", help="the store")
    report.add_argument("--dictionary", default=RUN / "dictionary", help=OPENED)
    report.add_argument("--statistics", type=Path, default=RUN / "statistics")
    report.add_argument(
        "--words", type=Path, default=None, help="a text file with one candidate name a line, 20 or more"
    )


def _evaluation_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--families", nargs="+", default=None, help="all that are trained where not given")
    evaluate.add_argument("--k", type=int, default=12, help="active latents a token of the table")
    evaluate.add_argument("--frontier", type=int, nargs="*", default=[6, 24], help="further numbers of active latents")
    evaluate.add_argument("--scenes", type=int, default=2000, help="scenes to train on")
    evaluate.add_argument("--held-out", type=int, default=600, help="scenes to score on")
    evaluate.add_argument("--steps", type=int, default=500, help="optimiser steps of every run")


def _training_options(train: argparse.ArgumentParser) -> None:
    """Every field of TrainConfig as an option; those not given come from the preset or the defaults."""
    from vlsae.training.config import TrainConfig
    from vlsae.training.presets import PRESETS

    train.add_argument("--preset", default=None, choices=sorted(PRESETS), help="a published recipe")
    train.add_argument("--device", default="cpu")
    train.add_argument("--engine", default="auto", choices=["auto", "torch", "fused"])
    train.add_argument(
        "--latent-shards", type=int, default=1, help="parts of the dictionary, for processes started by torchrun"
    )
    train.add_argument(
        "--set", dest="options", nargs="*", default=[], metavar="NAME=VALUE", help="options of the family"
    )
    for name, field in TrainConfig.__dataclass_fields__.items():
        if name in ("seed", "options"):
            continue
        kind = {"str": str, "int": int, "float": float}[str(field.type)]
        option = f"--{name.replace('_', '-')}"
        train.add_argument(option, type=kind, default=argparse.SUPPRESS, help=f"default {field.default}")


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.demo import run_demo

    result = run_demo(options.out, seed=options.seed, n_train=options.scenes, progress=not options.json)
    if not options.json:
        for name, metric in result.metrics.items():
            beside = ", ".join(f"{k} {v:.3f}" for k, v in metric.baselines.items())
            print(f"{metric.value:9.4f}  {name}" + (f"  ({beside})" if beside else ""))
        print(
            f"{sum(result.seconds.values()):.0f} s in all: "
            + ", ".join(f"{k} {v:.0f}" for k, v in result.seconds.items())
        )
    return {"report": str(options.out / "report.html"), "metrics": str(options.out / "metrics.json")}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.evaluate import FAMILIES, evaluate

    result = evaluate(
        options.out, families=options.families or FAMILIES, k=options.k, frontier=options.frontier, seed=options.seed,
        n_train=options.scenes, n_test=options.held_out, steps=options.steps, progress=not options.json,
    )  # fmt: skip
    if not options.json:
        print(f"{'dictionary':>18}     L0     EV   dead  zero-shot  localised  stability")
        for s in sorted((s for s in result.scores if s.wanted == result.k), key=lambda s: (not s.trained, -s.accuracy)):
            beside = f"{s.stability:.3f} ({s.stability_start:.3f} at the start)" if s.stability is not None else ""
            print(
                f"{s.family:>18} {s.l0:6.1f} {s.ev:6.3f} {s.dead:6.3f} {s.accuracy:10.3f} {s.localised:10.3f}  {beside}"
            )
    return {"report": str(options.out / "report.html"), "scores": str(options.out / "evaluation.json")}


def _extract(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.activations.extraction import extract
    from vlsae.activations.ranks import job_device, job_place, missing_ranks
    from vlsae.backbones.load import load_model

    rank, world_size = job_place(options.rank, options.world_size)
    store = extract(
        load_model(options.model, job_device(options.device), options.precision), options.images, options.site, options.out,
        tokens=options.tokens, random_k=options.random_k, dtype=options.dtype, batch_size=options.batch_size,
        shard_images=options.shard_images, seed=options.seed, strict=options.strict, progress=not options.json,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    facts = {"store": str(options.out), "n_images": store.n_images, "n_tokens": store.n_tokens, "d": store.d}
    if not store.complete:
        return {**facts, "complete": False, "missing_ranks": missing_ranks(store, world_size)}
    return {**facts, "n_skipped": store.manifest["n_skipped"]}


def named_value(text: str) -> tuple[str, Any]:
    """`"experts=8"` as a name and a value; values are JSON or Python's True, False and None, anything else is a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: give NAME=VALUE.")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except json.JSONDecodeError:
        return name, value


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.activations.ranks import job_place
    from vlsae.training.config import TrainConfig
    from vlsae.training.loop import train

    given = {k: v for k, v in vars(options).items() if k in TrainConfig.__dataclass_fields__}
    given["options"] = dict(named_value(text) for text in options.options)
    train(
        options.data, preset=options.preset, out=options.out, device=options.device, progress=not options.json,
        engine=options.engine, latent_shards=options.latent_shards, **given,
    )  # fmt: skip
    if job_place()[0] > 0:
        return {}  # the first process of a team speaks for all
    last = [json.loads(line) for line in (options.out / "train.jsonl").read_text().splitlines()][-1:]
    facts = {k: row[k] for row in last for k in ("step", "ev", "l0", "dead")}
    n_latents = json.loads((options.out / "cfg.json").read_text())["d_sae"]
    return {"dictionary": str(options.out), "n_latents": n_latents, **facts}


def _stats(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.activations.reader import ActivationStore
    from vlsae.concepts.statistics import latent_statistics
    from vlsae.interop.load import load_dictionary

    dictionary, store = load_dictionary(options.dictionary), ActivationStore(options.data)
    statistics = latent_statistics(dictionary, store, n_top=options.top, progress=not options.json)
    statistics.save(options.out)
    return {"statistics": str(options.out), "alive": int(statistics.alive.sum()), "n_latents": dictionary.n_latents}


def _heatmap(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.backbones.load import load_model
    from vlsae.heatmaps.maps import latent_grids, strongest_latents
    from vlsae.heatmaps.render import contour, overlay, reference_grid, side_by_side, value_range, with_scale
    from vlsae.images.decode import open_image
    from vlsae.interop.load import load_dictionary

    dictionary = load_dictionary(options.dictionary)
    model = load_model(options.model or dictionary.metadata.get("model") or "tiny")
    image = open_image(options.image)
    latents = options.latent or strongest_latents(model, dictionary, image, 4)
    grids = latent_grids(model, dictionary, [image], latents)[0].numpy()
    maps = [model.geometry.to_image(grid, image.size) for grid in grids]
    if options.style == "contour":
        picture = side_by_side([contour(image, values) for values in maps])
    elif len(latents) == 1:
        picture = with_scale(overlay(image, maps[0]), value_range(maps), label=f"activation of latent #{latents[0]}")
    else:
        label = "activation of latents " + ", ".join(f"#{i}" for i in latents)
        picture = reference_grid([image] * len(latents), maps, side=224, label=label)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(options.out)
    return {"picture": str(options.out), "latents": list(latents), "maximum": [float(grid.max()) for grid in grids]}


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.activations.reader import ActivationStore
    from vlsae.concepts.statistics import LatentStatistics
    from vlsae.interop.load import load_dictionary
    from vlsae.report.run import write_report

    words = options.words.read_text(encoding="utf-8").split("\n") if options.words else []
    path = write_report(
        ActivationStore(options.data), load_dictionary(options.dictionary), LatentStatistics.load(options.statistics),
        options.out, vocabulary=[w.strip() for w in words if w.strip()],
    )  # fmt: skip
    return {"report": str(path)}


COMMANDS = {"demo": _demo, "evaluate": _evaluate, "extract": _extract, "train": _train, "stats": _stats, "heatmap": _heatmap,
            "report": _report}  # fmt: skip
