"""The vocabularies and image means that the authors of SpLiCE published, with their quirks.

The lists hold one concept a line in ascending frequency; the original loader takes the *last* lines. `laion_bigrams`
has its 5,001 two-word concepts *first*, so that asking for the 10,000 most frequent entries silently drops them all;
`mscoco` has an empty line. All of it is said, none of it is changed.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from vlsae.atomic import replacing
from vlsae.splice.vocabulary import Concept, Vocabulary, check_size

log = logging.getLogger("vlsae")

REPOSITORY = "https://raw.githubusercontent.com/AI4LIFE-GROUP/SpLiCE/9a49810/data"
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Published:
    """A file of the SpLiCE repository and its checksum."""

    path: str
    sha256: str


PUBLISHED = {
    "laion": Published("vocab/laion.txt", "aee8e260477dcfbc873f939955ffd472969859054ed46e245bbe8b37d10b508c"),
    "laion_bigrams": Published(
        "vocab/laion_bigrams.txt", "6561525228843aa8b0d2b27e731c8c2b18dac0e4bdda40761933b0aecda1e67a"
    ),
    "mscoco": Published("vocab/mscoco.txt", "ddd84fc591b2e49c1513cc3dcc199153df276a44686712e21a6efb7711e2d43b"),
}
MEANS = {
    "clip_RN50": Published(
        "means/clip_RN50_image.pt", "e1ee3345ef6faf6f8ebc30f649189bf4e583fe71229b2955e227cf59124d42fa"
    ),
    "clip_ViT-B-16": Published(
        "means/clip_ViT-B-16_image.pt", "2907555438ef16b4677cb72ad81b3c3fe8c9246028714e943dba6c3b91d67eee"
    ),
    "clip_ViT-B-32": Published(
        "means/clip_ViT-B-32_image.pt", "dbd73aec9162cc26d3850c042b2a035720c1f6d38fc0b64a73518995f884202b"
    ),
    "open_clip_ViT-B-32": Published(
        "means/open_clip_ViT-B-32_image.pt", "6b91c6d0e9006e27dfb6f13e6d25a90c5ff24eb14e4ee60cf064a7ddf9f646b7"
    ),
}


def cache_folder() -> Path:
    """Where downloads and embedded vocabularies are kept: `$VLSAE_CACHE`, or `~/.cache/vlsae`."""
    return Path(
        os.environ.get("VLSAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vlsae"
    ).expanduser()


def fetch(item: Published) -> Path:
    """The file on disk, downloaded once and checked against its checksum.

    Raises:
        OSError: where there is no file and it cannot be downloaded; says where to put it.
        ValueError: for a file on disk with another content.
    """
    place = cache_folder() / "splice" / Path(item.path).name
    address = f"{REPOSITORY}/{item.path}"
    if not place.exists():
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                content = answer.read()
        except (OSError, http.client.HTTPException) as error:  # the latter for a connection that breaks off
            raise OSError(
                f"SpLiCE's {place.name} is not on disk and could not be downloaded ({error}). Where there is a network, get "
                f"{address}; put it at {place} (or set VLSAE_CACHE), or give the path of your copy in place of the name."
            ) from error
        if hashlib.sha256(content).hexdigest() != item.sha256:
            raise OSError(
                f"What came from {address} is not the published file ({len(content):,} bytes with another checksum; a proxy "
                f"may have answered). Get it by other means and put it at {place}, or give its path in place of the name."
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as partial:
            partial.write_bytes(content)
    found = hashlib.sha256(place.read_bytes()).hexdigest()
    if found != item.sha256:
        raise ValueError(
            f"{place} has the checksum {found[:12]}..., the published file {item.sha256[:12]}...; delete it to download "
            "it again, or give its path in place of the name to use it as it is."
        )
    return place


def load_published(name: str, size: int | None = None) -> Vocabulary:
    """One of SpLiCE's lists by name, most frequent first; fetched once."""
    return read_lines(fetch(PUBLISHED[name]), size)


def read_lines(path: Path, size: int | None = None) -> Vocabulary:
    """A text file with one concept a line.

    Args:
        path: UTF-8. Files named as SpLiCE's are read from rare to frequent, others from frequent to rare.
        size: keep the most frequent ones only.

    Returns:
        The vocabulary without blank lines and repetitions, with what was left out in its provenance.

    Raises:
        ValueError: for a file that is no text, or holds no concept, or a size below 1.

    Warns in the log of blank lines and repetitions, and where `size` leaves out more than half of the two-word concepts.
    """
    check_size(size)
    content = path.read_bytes()
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    ascending = path.stem in PUBLISHED
    texts = list(dict.fromkeys(line for line in (reversed(lines) if ascending else lines) if line))
    if not texts:
        raise ValueError(f"{path} holds no concept; give a text file with one a line.")
    blank = sum(not line for line in lines)
    repeated = len(lines) - blank - len(texts)
    if blank or repeated:
        log.warning("%s: %d blank and %d repeated lines are left out.", path.name, blank, repeated)
    kept = texts[:size]
    pairs, kept_pairs = (sum(" " in t for t in some) for some in (texts, kept))
    if kept_pairs < pairs / 2:
        log.warning(
            "%s: only %d of its %d two-word concepts are among the %d most frequent entries; take all %d to have them.",
            path.name, kept_pairs, pairs, len(kept), len(texts),
        )  # fmt: skip
    about = {"source": path.name, "sha256": hashlib.sha256(content).hexdigest(), "lines": len(lines), "blank": blank,
             "repeated": repeated, "order": "ascending" if ascending else "descending", "entries": len(texts)}  # fmt: skip
    if ascending:
        known = about["sha256"] == PUBLISHED[path.stem].sha256
        about |= {"published_by": "AI4LIFE-GROUP/SpLiCE", "licence": LICENCE, "as_published": known}
    concepts = tuple(Concept(t, None, ("two-word",) if len(t.split()) == 2 else ()) for t in kept)
    return Vocabulary(concepts, path.stem, provenance=about)
