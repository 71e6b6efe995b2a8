"""Fields of a stranger's configuration: how they are shown, and those that nobody here knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vlsae.interop.answers import Fact, one_of

IGNORED = "ignored"  # the answer to the question about unknown fields
LISTED = 8


def describe(value: Any, most: int = 60) -> str:
    """A name or value of a file in one short line, whatever it holds.

    Example:
        >>> describe("a" * 100, most=10)
        'aaaaaaaaaa...'
    """
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def unknown_fields(config: Mapping[Any, Any], known: Collection[str]) -> list[str]:
    """Fields that are set and that no version known here has, each as `name=value`, in the file's order."""
    return [
        f"{describe(name, 40)}={describe(value, 20)}"
        for name, value in config.items()
        if name not in known and value is not None
    ]


def other_fields(config: Mapping[Any, Any], known: Collection[str], project: str) -> dict[str, Fact]:
    """The question that unknown fields raise, by its name; empty where there is none.

    A version or fork that has further fields may compute other codes from the same tensors, which nothing else in the file
    would show.

    Args:
        config: what the file says.
        known: fields that are read, and those of all known versions that change no code.
        project: and the versions that are known, for the message: "sparsify 1.3".
    """
    found = unknown_fields(config, known)
    if not found:
        return {}
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    question = (
        f"what fields that {project} does not have do here ({', '.join(found[:LISTED])}{more}); a version that has them may "
        "compute other codes"
    )
    return {"other_fields": Fact(None, question, f'"{IGNORED}" where you know that they change no codes',
                                 check=one_of(IGNORED))}  # fmt: skip


def ignored_note(config: Mapping[Any, Any], known: Collection[str]) -> list[str]:
    """The note that such fields leave in `metadata["notes"]`, once they are ignored."""
    found = unknown_fields(config, known)
    return [f"Fields that nobody here knows were ignored, as was asked: {', '.join(found[:LISTED])}."] if found else []
