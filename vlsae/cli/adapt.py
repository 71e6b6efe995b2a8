"""The command adapt: train an adaptation of a CLIP on a few images a class."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlsae.cli.sae import named_value


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command; `add` makes one with the common options."""
    adapt = add(
        "adapt", "Train an adaptation of a CLIP on a few images a class, and classify the others.", Path("runs/adapted")
    )
    adapt.add_argument("data", help="a folder with a sub-folder of images a class")
    adapt.add_argument(
        "--method", default="coop", help="coop, maple, lora, tip_adapter, ...; an unknown name lists all"
    )
    adapt.add_argument("--model", default="tiny", help="tiny, open_clip:ARCH/TAG, hf:ID, or a folder")
    adapt.add_argument("--device", default="cpu")
    adapt.add_argument("--shots", type=int, default=16, help="images a class to train on")
    adapt.add_argument("--classes", default="all", choices=["all", "base", "new"], help="to train on: all, or the first or "
                       "second half; images are then told apart within each half")  # fmt: skip
    adapt.add_argument("--templates", nargs="+", default=None, metavar="TEXT", help="prompts with one {}, for methods that "
                       "keep the text side; by default 'a photo of a {}'")  # fmt: skip
    adapt.add_argument("--set", dest="options", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method "
                       "and of its recipe: epochs, batch_size, lr, optimizer, weight_decay, warm_up_lr")  # fmt: skip


def _adapt(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.adaptation.generalisation import adapt_and_score
    from vlsae.backbones.base import DEFAULT_TEMPLATES
    from vlsae.backbones.load import load_model

    _, facts = adapt_and_score(
        load_model(options.model, options.device), options.data, options.method, classes=options.classes,
        shots=options.shots, templates=options.templates or DEFAULT_TEMPLATES, out=options.out, seed=options.seed,
        progress=not options.json, **dict(named_value(text) for text in options.options),
    )  # fmt: skip
    return {"adaptation": str(options.out), "method": options.method, **facts}


COMMANDS = {"adapt": _adapt}
