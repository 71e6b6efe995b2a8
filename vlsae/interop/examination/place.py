"""Whether a site exists in a model and has a dictionary's width."""

from __future__ import annotations

from collections.abc import Mapping

from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.interop.examination.diagnosis import Finding
from vlsae.interop.examination.tokens import comparable_sites


def find_place(
    dictionary: Dictionary, model: Backbone, site: str | None, widths: Mapping[str, int]
) -> tuple[Site | None, Finding | None]:
    """The site by non-negative number, and what is wrong with it; neither where nobody knows it.

    Args:
        site: as a user says it; the dictionary's own where None.
        widths: of every site of the model.

    Raises:
        ValueError: for a misspelled site, or one of the text tower other than text.pooled.
    """
    name = site or dictionary.metadata.get("site")
    if name is None:
        fits = comparable_sites(None, widths, dictionary.d)
        return None, None if fits else width_finding(dictionary.d, None, widths, model.spec)
    place = readable(str(name))
    if place.tower == "text" and not model.has_text:
        return place, Finding(
            "wrong", "site", f"{name} does not exist: {model.spec} has no text tower; give another --model."
        )
    if place.block is not None:
        n = len(model.blocks(place.tower))
        if not -n <= place.block < n:
            return place, Finding("wrong", "site", f"{name} does not exist: blocks of {model.spec} are 0 to {n - 1}, or -{n} "
                                  "to -1 from the end. Give another --site or the model it was trained on.")  # fmt: skip
        place = place.resolve(n)
    if str(place) not in widths:
        return place, Finding(
            "wrong", "site", f"{name} does not exist in {model.spec}; there are {grouped(list(widths))}."
        )
    if widths[str(place)] != dictionary.d:
        return place, width_finding(dictionary.d, str(place), widths, model.spec)
    return place, None


def readable(name: str) -> Site:
    """A site that the doctor can read.

    Raises:
        ValueError: for a misspelled one, or one of the text tower other than text.pooled.
    """
    place = Site.parse(name)
    if place.tower == "text" and place.stream != "pooled":
        raise ValueError(f"The doctor reads sites of the vision tower and text.pooled, not {name}.")
    return place


def width_finding(d: int, site: str | None, widths: Mapping[str, int], spec: str) -> Finding:
    same = grouped([name for name, width in widths.items() if width == d])
    where = f"{site} of {spec} has {widths[site]}" if site else f"no vision block of {spec} has that"
    advice = (f"of that width are {same}. Give one of these as --site" if same
              else f"no site of {spec} has that width. Give another --model")  # fmt: skip
    return Finding("wrong", "width", f"The dictionary reads activations of width {d}, but {where}; {advice}.")


def grouped(sites: list[str]) -> str:
    """Sites with runs of blocks drawn together.

    Example:
        >>> grouped(["vision.0.mlp_out", "vision.1.mlp_out", "vision.pooled"])
        'vision.0..1.mlp_out, vision.pooled'
    """
    blocks: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        parts = site.split(".")
        blocks.setdefault((parts[0], parts[-1]), []).append(".".join(parts[1:-1]))
    return ", ".join(
        f"{tower}.{numbers[0]}..{numbers[-1]}.{stream}" if len(numbers) > 1
        else ".".join(part for part in (tower, numbers[0], stream) if part)
        for (tower, stream), numbers in blocks.items()
    )  # fmt: skip
