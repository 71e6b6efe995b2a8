"""The command that compares a base model with its adapted version: compare."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlsae.cli.sae import OPENED, RUN


def add_commands(add: Callable[[str, str, Path], argparse.ArgumentParser]) -> None:
    """Declare the command; `add` makes one with the common options."""
    compare = add(
        "compare", "Say what adaptation changed: base against adapted model, in numbers.", Path("runs/comparison")
    )
    compare.add_argument("base", help="tiny, open_clip:ARCH/TAG, hf:ID, or a folder")
    compare.add_argument(
        "adapted", help="what `vlsae adapt` wrote, or a published checkpoint of CoOp, MaPLe, LoRA, ..."
    )
    compare.add_argument(
        "--data", required=True, help="a folder with a sub-folder a class, or a .csv with path and label"
    )
    compare.add_argument("--dictionary", default=RUN / "dictionary", help=OPENED)
    compare.add_argument("--template", nargs="+", default=["a photo of a {}"], help="prompts with one {}")
    compare.add_argument("--tau", type=float, default=0.2, help="activation above which a token counts")
    compare.add_argument("--top", type=int, default=10, help="k of the headline overlap and of the remapping matrix")
    compare.add_argument("--resamples", type=int, default=200, help="behind the intervals")
    compare.add_argument(
        "--vocabulary", default=None,
        help="words in which class texts are written, where they changed, such as concepts-en; tiny models have their own",
    )  # fmt: skip
    compare.add_argument("--no-curves", action="store_true", help="leave the masking curves out, which take longest")
    compare.add_argument("--batch-size", type=int, default=16, help="images a forward pass")
    compare.add_argument("--device", default="cpu")


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.adaptation.comparison.comparison import compare
    from vlsae.adaptation.load import load_adapted
    from vlsae.backbones.load import load_model
    from vlsae.images.sources import load_images
    from vlsae.interop.load import load_dictionary
    from vlsae.report.comparison import write_comparison
    from vlsae.splice.model import SpLiCE

    images = load_images(options.data)
    base = load_model(options.base, options.device)
    vocabulary = options.vocabulary or ("tiny" if base.spec in ("tiny", "tiny16") else None)
    splice = SpLiCE(base, vocabulary, progress=not options.json) if vocabulary else None
    comparison = compare(
        base, load_adapted(base, options.adapted, class_names=images.class_names), load_dictionary(options.dictionary), images,
        templates=options.template, tau=options.tau, k=options.top, n_boot=options.resamples, seed=options.seed,
        curves=not options.no_curves, splice=splice, batch_size=options.batch_size, progress=not options.json,
    )  # fmt: skip
    comparison.save(options.out)
    if not options.json:
        print(comparison.summary())
    report = write_comparison(comparison, options.out / "report.html")
    return {"report": str(report), "metrics": str(options.out / "metrics.json"), **comparison.gain}


COMMANDS = {"compare": _compare}
