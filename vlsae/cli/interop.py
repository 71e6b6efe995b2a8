"""Commands for dictionaries of any project: doctor and convert."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlsae.cli.sae import named_value


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the commands; `add` makes one with the common options."""
    doctor = add(
        "doctor", "Say whether a dictionary fits a model, and where and how; exit code 1 where it does not.",
        Path("runs/doctor.json"),
    )  # fmt: skip
    doctor.add_argument("path", help="a dictionary of vlsae or of another project: folder, file, or user/repository")
    doctor.add_argument("--model", required=True, help="tiny, open_clip:ARCH/TAG, hf:ID, or a folder")
    doctor.add_argument("--data", required=True, help="some images: a folder or list; for text.pooled a .txt of texts")
    doctor.add_argument("--site", default=None, help="TOWER.BLOCK.STREAM; the dictionary's own where not given, and where "
                        "nobody knows it the best of all")  # fmt: skip
    doctor.add_argument("--tokens", default=None, help="patches, cls, patches+cls, all or random_k; the dictionary's own where "
                        "not given")  # fmt: skip
    doctor.add_argument("--images", type=int, default=64, help="how many are drawn")
    doctor.add_argument("--batch-size", type=int, default=16, help="images a forward pass")
    doctor.add_argument("--device", default="cpu", help="of the model and the dictionary")
    doctor.add_argument("--full", action="store_true", help="print all numbers, sites, other uses and checks")
    _opening(doctor)

    convert = add("convert", "Write a dictionary as another project reads it, and check that it is the same there.",
                  Path("runs/converted"))  # fmt: skip
    convert.add_argument("path", help="a dictionary of vlsae or of another project: folder, file, or user/repository")
    convert.add_argument("out", nargs="?", type=Path, default=argparse.SUPPRESS, help="a new folder; also --out")
    convert.add_argument(
        "--to", default="saelens", help="saelens, dictionary_learning, vlsae, ...; an unknown one lists all"
    )
    _opening(convert)


def _opening(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dialect", default=None, help="whose file it is, where that cannot be told from it")
    command.add_argument("--set", dest="options", nargs="*", default=[], metavar="NAME=VALUE", help="what the file does not "
                         "say, such as k=32; the error that asks for it lists names and choices")  # fmt: skip


def _doctor(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.backbones.load import load_model
    from vlsae.interop.doctor import check_request, examine
    from vlsae.interop.load import open_knowing, usable_device

    check_request(options.site, options.tokens, options.images)
    device, images = usable_device(options.device), _inputs(options.data)
    if len(images) < 2:
        raise ValueError(f"{options.data} holds {len(images)} of them; give 2 or more (64 are usual).")
    answers = dict(named_value(text) for text in options.options)
    known = {"model": options.model, "site": options.site or "unknown"}
    dictionary, _ = open_knowing(options.path, answers, known, options.dialect)
    found = examine(
        dictionary.to(device), load_model(options.model, options.device), images, site=options.site, tokens=options.tokens,
        n_images=options.images, seed=options.seed, batch_size=options.batch_size, progress=not options.json,
    )  # fmt: skip
    path = found.save(options.out)
    if not options.json:
        given = [f"--{name} {getattr(options, name)}" for name in ("tokens", "dialect") if getattr(options, name)]
        print(found.summary(full=options.full, path=options.path, data=options.data, options=" ".join(given)) + "\n")
    return {"diagnosis": str(path), "exit_code": int(not found.fits), **(found.as_dict() if options.json else {})}


def _inputs(data: str) -> Any:
    """Images by name; lines of text where a .txt is no list of pictures."""
    from vlsae.images.sources import load_images

    path = Path(data)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines and not (path.parent / lines[0]).exists():
            return lines
    return load_images(data)


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    from vlsae.interop.convert import convert

    answers = dict(named_value(text) for text in options.options)
    done = convert(options.path, options.out, options.to, dialect=options.dialect, seed=options.seed, **answers)
    if not options.json:
        print(done.summary())
        return {}
    return {"dictionary": str(done.out), "to": done.to, "family": done.family, "becomes": done.becomes,
            "lost": list(done.lost), "compared": done.compared, "error": done.error}  # fmt: skip


COMMANDS = {"doctor": _doctor, "convert": _convert}
