"""Files that are either the old or the new one, whatever happens while they are written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a partial path to write to; it takes the place of `path` when the block ends without an error, else it goes."""
    partial = path.parent / f".partial-{secrets.token_hex(4)}-{path.name}"  # jobs on other machines may share a pid
    try:
        yield partial
        with open(partial, "rb+") as file:  # a rename may reach the disk before the bytes do
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk its space is needed
        raise
