"""Commands of SpLiCE: decompose, drift, mean, and vocab build."""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = 12


def add_commands(add: Callable[..., argparse.ArgumentParser], commands) -> None:
    """Declare the commands; `add` makes one with the common options."""
    decompose = add(
        "decompose", "Say in words what is in a picture, or in a folder of pictures.", Path("runs/decompose")
    )
    decompose.add_argument("images", nargs="+", help="pictures, a folder, a .csv or .txt list; or texts with --text")
    _model_options(decompose)
    decompose.add_argument("--text", action="store_true", help="decompose these texts instead of pictures")

    drift = add(
        "drift", "Compare the concepts of two sets of pictures; exit code 1 where they differ.", Path("runs/drift")
    )
    drift.add_argument("reference", help="a folder or list of pictures, or a profile.json of an earlier run")
    drift.add_argument("images", help="a folder or list of pictures")
    _model_options(drift)
    drift.add_argument("--fdr", type=float, default=0.05, help="share of false alarms among what is reported, at most")
    drift.add_argument("--min-effect", type=float, default=0.02, help="smallest change that counts")

    mean = add("mean", "Take the mean embedding of pictures, which decompose takes away.", Path("runs/mean.json"))
    mean.add_argument(
        "images", help="a folder or list of some thousand ordinary pictures; or a .txt of texts with --text"
    )
    mean.add_argument("--model", default="tiny", help="tiny, open_clip:ARCH/TAG, hf:ID, or a folder")
    mean.add_argument("--device", default="cpu")
    mean.add_argument("--text", action="store_true", help="the file holds one text a line")

    vocab = commands.add_parser("vocab", help="Make concept vocabularies.", description="Make concept vocabularies.")
    actions = vocab.add_subparsers(dest="action", required=True, metavar="ACTION")
    _vocab_options(add("build", "Build a vocabulary from captions, as SpLiCE's was from LAION.",
                       Path("runs/words.jsonl"), group=actions))  # fmt: skip


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="tiny", help="tiny, open_clip:ARCH/TAG, hf:ID, or a folder")
    command.add_argument("--device", default="cpu")
    command.add_argument("--vocabulary", default=None, help="concepts-en, tiny, laion, laion_bigrams, mscoco, or a file; "
                         "by default tiny for the tiny models, else concepts-en")  # fmt: skip
    command.add_argument("--size", type=int, default=None, help="the most frequent concepts only")
    penalty = command.add_mutually_exclusive_group()
    penalty.add_argument("--l1", type=float, default=None, help="penalty of ||z - wC||^2 + l1 ||w||_1; default 0.25")
    penalty.add_argument("--lam", type=float, default=None, help="the paper's lambda, l1 / 2")
    penalty.add_argument("--n-concepts", type=int, default=None, help="a number of concepts in place of a penalty")
    command.add_argument("--method", default="active_set", help="solver; with --n-concepts omp or path")
    command.add_argument("--mean", default=None, help="mean of the images (of the texts, with --text): a file, a "
                         "published name, 'batch', or 'none'; by default the model's own")  # fmt: skip


def _vocab_options(build: argparse.ArgumentParser) -> None:
    build.add_argument("captions", nargs="+", type=Path, help="files or folders: .txt .csv .tsv .jsonl .parquet .tar; all "
                       "but .parquet also with .gz")  # fmt: skip
    build.add_argument("--model", default="tiny", help="whose text space decides what is alike: tiny, open_clip:ARCH/TAG, "
                       "hf:ID, or none")  # fmt: skip
    build.add_argument("--device", default="cpu")
    build.add_argument("--unigrams", type=int, default=10_000, help="one-word concepts")
    build.add_argument("--bigrams", type=int, default=5_000, help="two-word concepts")
    build.add_argument("--safety", default="default", choices=["strict", "default", "none"], help="what is dropped")
    build.add_argument(
        "--similarity", type=float, default=0.9, help="cosine above which the less frequent concept goes"
    )
    build.add_argument("--min-count", type=int, default=2, help="leave out phrases seen less often")
    build.add_argument("--column", default=None, help="caption column or field; found by its usual names otherwise")
    build.add_argument("--name", default=None, help="of the vocabulary; the file's where not given")
    build.add_argument("--capacity", type=int, default=1_000_000, help="phrases of a kind in memory; counts are exact up "
                       "to twice that")  # fmt: skip
    build.add_argument("--keep-stop-words", action="store_true", help="take 'of', 'the' and so on for concepts")
    build.add_argument(
        "--work", type=Path, default=None, help="counts of each file, to go on from; OUT.counts otherwise"
    )
    build.add_argument("--workers", type=int, default=1, help="processes that count files")


def _splice(options: argparse.Namespace):
    from vlsae.backbones.load import load_model
    from vlsae.splice import SpLiCE

    vocabulary = options.vocabulary or ("tiny" if options.model in ("tiny", "tiny16") else "concepts-en")
    modality = "text_mean" if getattr(options, "text", False) else "image_mean"
    mean = {modality: {"none": False, None: None}.get(options.mean, options.mean)}
    return SpLiCE(
        load_model(options.model, options.device), vocabulary, l1=options.l1, lam=options.lam,
        n_concepts=options.n_concepts, method=options.method, size=options.size,
        threads=options.threads or None, progress=not options.json, **mean,
    )  # fmt: skip


def _pictures(named: list[str]):
    """One source of all pictures that were named."""
    from vlsae.images.sources import ImageSource, load_images

    if len(named) == 1:
        return load_images(named[0])
    sources = [load_images(name) for name in named]
    return ImageSource([item for source in sources for item in source.items])


def _decompose(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.images.decode import open_image
    from vlsae.report.splice import dataset_chart, picture_chart

    splice = _splice(options)
    inputs = options.images if options.text else _pictures(options.images)
    found = splice.decompose(inputs)
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "concepts.json"
    table.write_text(json.dumps([found.as_dict(i) for i in range(len(found))]), encoding="utf-8")
    result: dict[str, Any] = {"model": splice.model.spec, "vocabulary": splice.space.vocabulary.name, "n": len(found),
                              "table": str(table)}  # fmt: skip
    if len(found) > 1:
        from vlsae.splice.audits import summarise

        summary = summarise(found.weights, found.texts, seed=options.seed)
        chart = dataset_chart(summary, f"{len(found):,} {'texts' if options.text else 'images'}")
        (options.out / "summary.json").write_text(json.dumps(summary.as_dict()), encoding="utf-8")
        result |= {"l0": float(found.l0.mean()), "cosine": float(found.cosine.mean()),
                   "summary": str(options.out / "summary.json")}  # fmt: skip
        if not options.json:
            print(summary.table(TOP))
    else:
        image = None if options.text else open_image(found.names[0])  # the one of them that can be read
        chart = picture_chart(image, found, 0)
        result |= found.as_dict(0) if options.json else {}
        if not options.json:
            print(found.table(0, TOP))
    result["chart"] = str(options.out / "chart.png")
    (options.out / "chart.png").write_bytes(chart)
    return result


def _drift(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from vlsae.images.sources import load_images
    from vlsae.splice.audits import Profile, drift, profile

    splice = _splice(options)
    mean = options.mean if options.mean == "batch" else zlib.crc32(splice.mean("image", np.zeros((0, 0))))
    key = f"{splice.space.key}/{splice.l1 or f'{splice.n_concepts} by {splice.method}'}/mean {mean}"
    options.out.mkdir(parents=True, exist_ok=True)
    if options.reference.endswith(".json"):
        reference = Profile.load(options.reference)
    else:
        before = splice.decompose(load_images(options.reference))
        reference = profile(before.weights, before.texts, key=key)
        reference.save(options.out / "profile.json")
    now = splice.decompose(load_images(options.images))
    found = drift(reference, now.weights, now.texts, key=key, fdr=options.fdr, min_effect=options.min_effect)
    (options.out / "drift.json").write_text(json.dumps(found.as_dict()), encoding="utf-8")
    if not options.json:
        print(found)
    return {"drifted": bool(found.drifted), "report": str(options.out / "drift.json"), "exit_code": found.exit_code}


def _mean(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.backbones.load import load_model
    from vlsae.images.sources import load_images
    from vlsae.splice import ModalityMean

    if options.text:
        lines = Path(options.images).read_text(encoding="utf-8").splitlines()
        inputs: Any = [line.strip() for line in lines if line.strip()]
    else:
        inputs = load_images(options.images)
    model = load_model(options.model, options.device)
    taken = ModalityMean.of(model, inputs, data=Path(options.images).name, progress=not options.json)
    return {"mean": str(taken.save(options.out)), "modality": taken.modality, "n": taken.n,
            "standard_error": taken.standard_error}  # fmt: skip


def _vocab(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.backbones.load import load_model
    from vlsae.splice.build import build_vocabulary

    model = None if options.model == "none" else load_model(options.model, options.device)
    words = build_vocabulary(
        options.captions, model, unigrams=options.unigrams, bigrams=options.bigrams, safety=options.safety,
        similarity=options.similarity, min_count=options.min_count, name=options.name or options.out.stem,
        column=options.column, capacity=options.capacity, keep_stop_words=options.keep_stop_words,
        work=options.work or options.out.with_suffix(".counts"), workers=options.workers, progress=not options.json,
    )  # fmt: skip
    about = words.provenance
    return {"vocabulary": str(words.save(options.out)), "n_words": len(words.of_words(1)),
            "n_pairs": len(words.of_words(2)), "captions": about["captions"],
            "removed_phrases": about["removed_phrases"], "counting": about["counting"]}  # fmt: skip


COMMANDS = {"decompose": _decompose, "drift": _drift, "mean": _mean, "vocab": _vocab}
