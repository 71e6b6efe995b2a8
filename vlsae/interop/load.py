"""Opening a dictionary, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.hub import fetch
from vlsae.interop.answers import Answers
from vlsae.interop.dialect import DIALECTS, Dialect, DialectError
from vlsae.interop.source import Source


def load_dictionary(
    path: str | Path, *, dialect: str | None = None, device: str = "cpu", subfolder: str = "", revision: str | None = None,
    token: str | bool | None = None, cache_dir: str | Path | None = None, local_files_only: bool = False, **answers: Any,
) -> Dictionary:  # fmt: skip
    """Open a dictionary of ours or of another project, recognised by its names, shapes and configuration.

    No code of the file is executed and no other project is imported. What the file does not say (often the model, the site,
    the activation or k) has to be said; nothing is guessed.

    Args:
        path: a checkpoint's file or folder, or a hub id, `[hf:]user/repo[@revision][/sub/folder][/file]`.
        dialect: whose format it is, one of `DIALECTS`, where that cannot be told from the file.
        device: where the weights go.
        subfolder, revision, token, cache_dir, local_files_only: of the hub, as for `vlsae.dictionaries.hub.download`.
        **answers: what the file leaves open, such as `model="open_clip:ViT-B-16/openai"`, `site="vision.-2.resid_post"`,
            `k=32`; "unknown" for a model or site that nobody knows. The error that asks for them lists the possible answers.

    Returns:
        The dictionary. Of another project's, `metadata["opened_from"]` has the dialect, the file and the answers, and
        `metadata["notes"]` what is good to know.

    Raises:
        CheckpointError: for a missing, damaged, unknown or dangerous file, for facts that nobody told, and without a network
            a hub id that is not in the cache.

    Example:
        >>> import tempfile
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> folder = TopKDictionary(d=4, n_latents=8, k=2).save(tempfile.mkdtemp())
        >>> load_dictionary(folder).k
        2
    """
    place = usable_device(device)
    dictionary, _ = open_knowing(
        path, answers, {}, dialect, subfolder=subfolder, revision=revision, token=token, cache_dir=cache_dir,
        local_files_only=local_files_only,
    )  # fmt: skip
    return dictionary.to(place)


def usable_device(name: str) -> torch.device:
    """A device that is there, looked at before anything is read.

    Raises:
        DialectError: for one that is not.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DialectError(
            f"device={name!r} cannot be used ({str(error).splitlines()[0][:150]}); give 'cpu'."
        ) from error


def open_knowing(
    path: str | Path, answers: Mapping[str, Any], known: Mapping[str, Any], dialect: str | None = None, **hub: Any
) -> tuple[Dictionary, dict[str, Any]]:
    """The same for a caller who knows more than was asked: `known` is used for questions that are open, else ignored.

    Returns:
        The dictionary on the processor, and what was used of `known`.
    """
    source = Source(fetch(path, **hub))
    reader = _dialect(source, dialect)
    asked = Answers(answers, f"{source.path} ({reader.project})", known)
    dictionary = reader.read(source, asked)
    if reader.name != "vlsae":
        told = asked.recorded()
        dictionary.metadata["opened_from"] = {
            "dialect": reader.name,
            "file": source.weights.name,
            **({"told": told} if told else {}),
        }
    return dictionary, asked.taken


def _dialect(source: Source, name: str | None) -> Dialect:
    if name is not None and name not in DIALECTS:
        raise DialectError(f"dialect={name!r} is unknown; known are {', '.join(DIALECTS)}.")
    found = [reader for reader in (DIALECTS.get(known)() for known in DIALECTS) if reader.sniff(source)]
    if name is not None:
        if found and not any(name in (reader.name, *reader.also) for reader in found):
            raise DialectError(
                f"{source.path} is a checkpoint of {found[0].project} and would be read wrongly as dialect={name!r}; leave "
                f"dialect out, or say dialect={found[0].name!r}."
            )
        return DIALECTS.get(name)()
    if len(found) == 1:
        return found[0]
    if found:
        raise DialectError(
            f"{source.path} could be of {' or '.join(reader.project for reader in found)}; "
            f"say dialect={' or '.join(repr(reader.name) for reader in found)}."
        )
    held = ", ".join(f"{name} {list(shape)}" for name, shape in list(source.shapes.items())[:8])
    raise DialectError(
        f"{source.path} is of no known dialect; its tensors are {held or 'none'}. Known are {', '.join(DIALECTS)}; where you "
        "know it to be one of them, say dialect=..."
    )
