"""The few pieces of HTML a report is made of."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from vlsae.atomic import replacing
from vlsae.heatmaps.render import png_bytes

STYLE = Path(__file__).parent / "style.css"


def image_tag(image: Image.Image | bytes, alt: str, width: int | None = None) -> str:
    """A picture inside the page itself."""
    data = image if isinstance(image, bytes) else png_bytes(image)
    size = f' width="{width}"' if width else ""
    return f'<img alt="{escape(alt, quote=True)}"{size} src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `text` is HTML, so that it may hold marks."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: `(number, what it is, what to compare it with)`."""
    boxes = (
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span><small>{escape(beside)}</small></div>'
        for number, what, beside in items
    )
    return f'<div class="tiles">{"".join(boxes)}</div>'


def figure(data: bytes, caption: str, alt: str, width: int | None = None) -> str:
    return f"<figure>{image_tag(data, alt, width)}<figcaption>{caption}</figcaption></figure>"


def cell(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[int | None] = ()) -> str:
    """A table whose first column is text and whose others are numbers; `best` marks one column a row in bold."""
    header = "".join(f"<th{'' if i == 0 else ' class=number'}>{escape(name)}</th>" for i, name in enumerate(head))
    body = []
    for r, row in enumerate(rows):
        marked = best[r] if r < len(best) else None
        cells = [f"<td>{row[0]}</td>"]
        cells += [
            f'<td class="number{" best" if marked == i else ""}">{value}</td>' for i, value in enumerate(row[1:], 1)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def facts(items: dict[str, str]) -> str:
    """A two-column list of names and values."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in items.items())
    return f"<table>{rows}</table>"


def latent_card(title: str, badge: str, note: str, picture: Image.Image, alt: str) -> str:
    return (
        f'<article class="card"><header><h3>{escape(title)}</h3><span class="badge">{escape(badge)}</span></header>'
        f'<div class="soft">{note}</div>{image_tag(picture, alt)}</article>'
    )


def write_page(path: str | Path, title: str, *parts: str) -> Path:
    """Write a self-contained page, in one step."""
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return path
